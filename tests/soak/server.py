"""The server's process: leg after leg, each checked when it is over."""

import gc
import json
import logging
import time
import traceback
from multiprocessing.connection import Connection
from typing import Any

import torch
from flwr.app import ArrayRecord
from torch import Tensor

from flwr_splitfc import SplitLearning
from flwr_splitfc.run.results import results_text
from tests.halves import same
from tests.soak.legs import HONEST, HONEST_NODES, HOSTILE_NODES, LEGS, STEPS, Leg
from tests.soak.pipe_grid import Courier, PipeGrid

Weights = dict[str, Tensor]

HONEST_NAMES = {str(number) for number in range(HONEST)}
ROUND_TIMEOUT_S = 120.0


class ErrorsInTheLog(logging.Handler):
    """Collects tracebacks, and what is logged as an error: gRPC tells of ours so."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info or record.levelno >= logging.ERROR:
            self.found.append(logging.Formatter().format(record))


def serve(pipe: Connection, seconds: float) -> None:
    """Run all legs without the hostile devices, and then again and again with them."""
    torch.set_num_threads(1)
    log = ErrorsInTheLog()
    for name in ("", "flwr"):
        logger = logging.getLogger(name)
        logger.handlers = [log]
    logging.getLogger("flwr").propagate = False
    courier = Courier(pipe)
    try:
        _run_legs(courier, seconds)
        if log.found:
            raise AssertionError("\n".join(log.found))
    except Exception:
        courier.send(("failed", traceback.format_exc()))
    else:
        courier.send(("done", ""))


def _run_legs(courier: Courier, seconds: float) -> None:
    alone = {}
    for number, leg in enumerate(LEGS):
        if leg.is_exact:
            courier.send(("leg", number))
            alone[leg.name] = _run(leg, courier, HONEST_NODES)
    courier.send(("attack", ""))
    end = time.monotonic() + seconds
    turns = 0
    while time.monotonic() < end:
        for number, leg in enumerate(LEGS):
            courier.send(("leg", number))
            found = _run(leg, courier, [*HONEST_NODES, *HOSTILE_NODES])
            if leg.is_exact:
                assert same(found, alone[leg.name]), f"{leg.name}: other weights"
            turns += HONEST * leg.turns
        courier.send(("turns", turns))
        # what a run leaves for the collector is no leak
        gc.collect()


def _run(leg: Leg, courier: Courier, nodes: Any) -> Weights:
    """The weights of both halves after a run, which is checked."""
    rounds = leg.rounds
    if leg.name == "in turn":
        rounds = len(nodes)
    strategy = leg.strategy()
    arrays = ArrayRecord(leg.device_half())
    grid = PipeGrid(courier, nodes)
    result = strategy.start(grid, arrays, rounds, timeout=ROUND_TIMEOUT_S)
    _check_turns(leg, strategy, rounds)
    weights = strategy.joined_state_dict(result.arrays)
    for name, tensor in weights.items():
        assert tensor.isfinite().all(), f"{leg.name}: {name} is not finite"
    json.loads(
        results_text({"rounds": strategy.progress.rows}), parse_constant=_no_json
    )
    return {name: tensor.clone() for name, tensor in weights.items()}


def _check_turns(leg: Leg, strategy: SplitLearning, rounds: int) -> None:
    for number in range(1, rounds + 1):
        failures = strategy.ledger.failures(number)
        honest = {name: failures[name] for name in failures.keys() & HONEST_NAMES}
        assert not honest, (
            f"{leg.name}: honest devices failed in round {number}: {honest}"
        )
    trained = strategy.ledger.devices("train")
    for name in HONEST_NAMES:
        steps = trained[name].steps
        wanted = leg.turns * STEPS
        assert steps == wanted, f"{leg.name}: {name} made {steps} of {wanted} steps"


def _no_json(word: str) -> None:
    raise AssertionError(f"{word} is no JSON")
