"""Waiting for the devices of a run, up to a limit."""

import time
from logging import getLogger

from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from flwr_splitfc.exchange import Limits
from flwr_splitfc.exchange.protocol.ticket import Purpose
from flwr_splitfc.exchange.server.grid.split_grid import SplitGrid
from flwr_splitfc.strategy.failed_rounds import RunFailed
from flwr_splitfc.strategy.innermost import innermost

_POLL_S = 0.1
_LOG_EVERY_S = 10.0

logger = getLogger("flwr")


def wait_for_sampled(grid: Grid, devices: Strategy, purpose: Purpose) -> None:
    """Wait up to a limit for as many as a strategy samples from.

    Flower's strategies wait without one.

    Raises
    ------
    RunFailed
    """
    sampler = innermost(devices)
    if getattr(sampler, f"fraction_{purpose}", 1.0) == 0:
        return
    for setting in ("min_available_nodes", f"min_{purpose}_nodes"):
        wait_for_devices(grid, getattr(sampler, setting, 0), setting)


def wait_for_devices(
    grid: Grid, num_devices: int, setting: str, limits: Limits | None = None
) -> list[int]:
    """Return the node ids, as soon as there are as many as `num_devices`.

    Parameters
    ----------
    grid : Grid
    num_devices : int
    setting : str
        What the number is called where the user set it.
    limits : Limits, optional
        With the most seconds to wait; default those of a `SplitGrid`, else
        `Limits`'s own.

    Raises
    ------
    RunFailed
        If fewer came in time.
    """
    limits = limits or _limits_of(grid)
    started = logged = time.monotonic()
    nodes = list(grid.get_node_ids())
    while len(nodes) < num_devices:
        now = time.monotonic()
        if now - started > limits.wait_timeout_s:
            raise RunFailed(
                f"{len(nodes)} of {num_devices} devices came within "
                f"{limits.wait_timeout_s:g} s (wait_timeout_s). Lower {setting}, or "
                "start more SuperNodes; in a simulation, num-supernodes says how many"
            )
        if now - logged > _LOG_EVERY_S:
            logger.info(
                "Waiting for devices: %d of %d (%s), for %d s of at most %g",
                len(nodes),
                num_devices,
                setting,
                now - started,
                limits.wait_timeout_s,
            )
            logged = now
        time.sleep(_POLL_S)
        nodes = list(grid.get_node_ids())
    return nodes


def _limits_of(grid: Grid) -> Limits:
    return grid.endpoint.limits if isinstance(grid, SplitGrid) else Limits()
