"""What is saved where a round does not end: the model of the last one that did."""

import logging
import random
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Message
from flwr.serverapp.strategy import FedAvg
from torch import Tensor, nn

from flwr_splitfc import (
    DecoupledHalf,
    HeadAndTail,
    RoundRobin,
    SplitClientApp,
    SplitFedV1,
    SplitFedV2,
    SplitLearning,
)
from flwr_splitfc.callbacks import Callback, RunSoFar
from flwr_splitfc.exchange import TrainedStep
from tests.halves import CLASSES, DeviceHalf, ServerHalf, batches, same, seeded
from tests.local_grid import LocalGrid

DEVICES = 3
ADAM = partial(torch.optim.Adam, lr=1e-2)
TAIL = partial(nn.Linear, CLASSES, CLASSES)
KINDS = ("in turn", "v1", "v2", "u-shaped", "decoupled")


def auxiliary() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES))


def device_half(kind: str) -> nn.Module:
    if kind == "u-shaped":
        return HeadAndTail(DeviceHalf(), TAIL())
    if kind == "decoupled":
        return DecoupledHalf(DeviceHalf(), auxiliary())
    return DeviceHalf()


def strategy_of(kind: str, **options: Any) -> SplitLearning:
    classes = {"v1": SplitFedV1, "v2": SplitFedV2}
    devices = FedAvg if kind in classes else RoundRobin
    loss_fn = None if kind == "u-shaped" else nn.CrossEntropyLoss()
    return classes.get(kind, SplitLearning)(
        seeded(ServerHalf),
        loss_fn,
        ADAM,
        devices=devices(fraction_evaluate=0.0, min_available_nodes=DEVICES),
        decoupled=kind == "decoupled",
        device="cpu",
        **options,
    )


def client_of(kind: str) -> SplitClientApp:
    parts: dict[str, Any] = {
        "u-shaped": {"tail": TAIL, "loss_fn": nn.CrossEntropyLoss()},
        "decoupled": {"auxiliary": auxiliary, "loss_fn": nn.CrossEntropyLoss()},
    }
    data = batches(2)
    return SplitClientApp(
        DeviceHalf, lambda context: (data, data), ADAM, **parts.get(kind, {})
    )


class CtrlC(LocalGrid):
    """Ctrl-C comes when so many turns are over, and the last has not replied yet."""

    def __init__(self, turns: int, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._turns = turns

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        if len(self.trained) == self._turns:
            raise KeyboardInterrupt
        return super().pull_messages(message_ids)


def start(
    kind: str, strategy: SplitLearning, rounds: int = 2, **options: Any
) -> ArrayRecord | None:
    # a shared half goes by the order in which devices are sampled
    random.seed(0)
    grid = options.pop("grid", LocalGrid)(client_of(kind), DEVICES, workers=0)
    half = seeded(partial(device_half, kind))
    result = strategy.start(grid, ArrayRecord(half.state_dict()), rounds, **options)
    return result.arrays


def saved(folder: Path) -> dict[str, Tensor]:
    """The whole model; the files of its halves are of the same round."""
    files = {
        name: torch.load(folder / f"{name}.pt", weights_only=True)
        for name in ("device", "server", "joined")
    }
    halves = {
        f"{half}.{name}": value
        for half in ("device", "server")
        for name, value in files[half].items()
    }
    assert same(halves, files["joined"])
    return halves


def of_two_rounds(kind: str, folder: Path) -> dict[str, Tensor]:
    start(kind, strategy_of(kind, save_to=folder))
    return saved(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_of_evaluation_leaves_both_halves_of_the_round_before(
    kind: str, tmp_path: Path
) -> None:
    def evaluate(server_round: int, arrays: ArrayRecord) -> None:
        if server_round == 3:
            raise ZeroDivisionError

    strategy = strategy_of(kind, save_to=tmp_path / "run")
    with pytest.raises(ZeroDivisionError):
        start(kind, strategy, 5, evaluate_fn=evaluate)
    assert same(saved(tmp_path / "run"), of_two_rounds(kind, tmp_path / "two"))


@pytest.mark.parametrize("kind", KINDS)
def test_so_does_ctrl_c_in_a_round(kind: str, tmp_path: Path) -> None:
    strategy = strategy_of(kind, save_to=tmp_path / "run")
    turns = 3 * (DEVICES if kind in ("v1", "v2") else 1)
    with pytest.raises(KeyboardInterrupt):
        start(kind, strategy, 5, grid=partial(CtrlC, turns))
    assert len(strategy.progress.rounds) == 2
    assert same(saved(tmp_path / "run"), of_two_rounds(kind, tmp_path / "two"))


class Interrupts(logging.Handler):
    """Ctrl-C comes while the line of a round is logged."""

    def __init__(self, server_round: int) -> None:
        super().__init__(logging.INFO)
        self._server_round = server_round

    def emit(self, record: logging.LogRecord) -> None:
        standing = getattr(record, "standing", None)
        if standing is not None and standing.last.round == self._server_round:
            raise KeyboardInterrupt


class Remembers(RoundRobin):
    """Ctrl-C comes while the checkpoint of a round is made."""

    rounds = 0

    def state_dict(self) -> dict[str, Any]:
        if self.rounds == 2:
            raise KeyboardInterrupt
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise AssertionError("not used")

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        self.rounds = server_round
        return super().aggregate_train(server_round, replies)


@pytest.mark.parametrize("kind", ["in turn", "v1"])
def test_a_round_is_saved_whose_line_ctrl_c_cuts_short(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "flwr")
    logger = logging.getLogger("flwr")
    interrupts = Interrupts(2)
    logger.addHandler(interrupts)
    strategy = strategy_of(kind, save_to=tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        start(kind, strategy, 5)
    logger.removeHandler(interrupts)
    assert [done.round for done in strategy.progress.rounds] == [1, 2]
    assert same(saved(tmp_path / "run"), of_two_rounds(kind, tmp_path / "two"))


def test_so_is_one_whose_checkpoint_it_cuts_short(tmp_path: Path) -> None:
    strategy = strategy_of(
        "in turn", save_to=tmp_path / "run", checkpoint=tmp_path / "checkpoint"
    )
    strategy.devices = Remembers(fraction_evaluate=0.0, min_available_nodes=DEVICES)
    with pytest.raises(KeyboardInterrupt):
        start("in turn", strategy, 5)
    assert [done.round for done in strategy.progress.rounds] == [1, 2]
    wanted = of_two_rounds("in turn", tmp_path / "two")
    assert same(saved(tmp_path / "run"), wanted)


@pytest.mark.parametrize("kind", ["in turn", "v1"])
def test_a_callback_saves_the_round_before_while_another_is_under_way(
    kind: str, tmp_path: Path
) -> None:
    class Saves(Callback):
        def on_step(self, step: TrainedStep, run: RunSoFar) -> None:
            if step.server_round == 3 and step.step == 2:
                run.save(tmp_path / "run")

    strategy = strategy_of(kind, callbacks=[Saves()])
    arrays = start(kind, strategy, 3)
    wanted = of_two_rounds(kind, tmp_path / "two")
    assert same(saved(tmp_path / "run"), wanted)
    # the strategy's own is of the model as it is now
    assert arrays is not None
    strategy.save(tmp_path / "now", arrays)
    assert not same(saved(tmp_path / "now"), wanted)
