"""A run waits for its devices, names the setting that makes it wait, and ends."""

import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pytest
import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import FedAvg, Strategy
from torch import nn

from flwr_splitfc import (
    EndpointConfig,
    Limits,
    RoundRobin,
    RunFailed,
    SplitClientApp,
    SplitLearning,
)
from flwr_splitfc.strategy import waiting
from tests.apps.server_runs import run
from tests.halves import DeviceHalf, ServerHalf, batches, seeded
from tests.local_grid import LocalGrid

SGD = partial(torch.optim.SGD, lr=0.1)
APP = SplitClientApp(DeviceHalf, lambda context: (batches(1), batches(1)), SGD)


class LateGrid(LocalGrid):
    """Its second device comes a second after the first."""

    def __init__(self) -> None:
        super().__init__(APP, 2)
        self._started = time.monotonic()

    def get_node_ids(self) -> Iterable[int]:
        there = 1 if time.monotonic() - self._started < 1.0 else 2
        return list(super().get_node_ids())[:there]


def start(grid: LocalGrid, devices: Strategy, timeout_s: float) -> SplitLearning:
    strategy = SplitLearning(
        seeded(ServerHalf),
        nn.CrossEntropyLoss(),
        SGD,
        devices=devices,
        endpoint=EndpointConfig(limits=Limits(wait_timeout_s=timeout_s)),
    )
    strategy.start(grid, ArrayRecord(seeded(DeviceHalf).state_dict()), 2)
    return strategy


@pytest.mark.parametrize("kind", [FedAvg, RoundRobin])
@pytest.mark.parametrize("setting", ["min_available_nodes", "min_evaluate_nodes"])
def test_too_few_devices_end_the_run(kind: type[FedAvg], setting: str) -> None:
    message = rf"2 of 3 devices came within 0\.3 s .* Lower {setting}, or start more"
    with pytest.raises(RunFailed, match=message):
        start(LocalGrid(APP, 2), kind(**{setting: 3}), 0.3)


def test_so_do_too_few_to_train() -> None:
    with pytest.raises(RunFailed, match="Lower min_train_nodes"):
        start(LocalGrid(APP, 2), FedAvg(min_train_nodes=3), 0.3)


def test_a_whole_app_names_its_key(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"3 of 4 devices came .* Lower num-devices"):
        run(tmp_path, num_devices=4, split_wait_timeout_s=0.3)


@pytest.mark.parametrize("kind", [FedAvg, RoundRobin])
def test_one_that_comes_late_is_waited_for(
    kind: type[FedAvg],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(waiting, "_LOG_EVERY_S", 0.3)
    caplog.set_level("INFO", "flwr")
    strategy = start(LateGrid(), kind(), 600)
    assert len(strategy.progress.rounds) == 2
    line = "Waiting for devices: 1 of 2 (min_available_nodes), for 0 s of at most 600"
    assert line in caplog.messages
