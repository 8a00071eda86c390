"""Waiting for the devices of a run."""

import time
from logging import getLogger

from flwr.serverapp import Grid

_POLL_S = 0.1
_LOG_EVERY_S = 10.0

logger = getLogger("flwr")


def wait_for_devices(grid: Grid, num_devices: int) -> list[int]:
    """Return the node ids, as soon as there are as many as `num_devices`."""
    logged = time.monotonic()
    nodes = list(grid.get_node_ids())
    while len(nodes) < num_devices:
        if time.monotonic() - logged > _LOG_EVERY_S:
            logger.info("Waiting for devices: %d of %d", len(nodes), num_devices)
            logged = time.monotonic()
        time.sleep(_POLL_S)
        nodes = list(grid.get_node_ids())
    return nodes
