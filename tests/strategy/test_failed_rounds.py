"""Rounds in which every device fails: they end the run, with the reason."""

import random
from collections.abc import Callable, Collection, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Context, Message
from flwr.serverapp.exception import AggregationError
from flwr.serverapp.strategy import (
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedYogi,
    QFedAvg,
    Strategy,
)
from torch import nn

from flwr_splitfc import (
    RoundRobin,
    RunFailed,
    SimulationBroken,
    SplitClientApp,
    SplitFC,
    SplitFedV1,
    SplitFedV2,
    SplitLearning,
)
from flwr_splitfc.exchange.protocol.ticket import Ticket
from flwr_splitfc.strategy import failed_rounds
from flwr_splitfc.strategy.checkpoint import load_checkpoint
from tests.halves import DeviceHalf, ServerHalf, batches, same, seeded
from tests.local_grid import App, LocalGrid
from tests.strategy.test_checkpoint import Remembering

ADAM = partial(torch.optim.Adam, lr=1e-2)
GOOD = SplitClientApp(DeviceHalf, lambda context: (batches(2), batches(1)), ADAM)


def failing(fails: Callable[[int, int], bool], why: str = "the fault") -> App:
    """An app whose device fails in a round of training where `fails(device, round)`."""

    def app(message: Message, context: Context) -> Message:
        device = context.node_config["partition-id"]
        if message.metadata.message_type == "train":
            server_round = Ticket.from_message(message).server_round
            if fails(device, server_round):
                raise ZeroDivisionError(f"{why} of device {device}")
        return GOOD(message, context)

    return app


def start(
    app: App,
    rounds: int,
    strategy: type[SplitLearning] = SplitLearning,
    half: type[DeviceHalf] = DeviceHalf,
    **options: Any,
) -> tuple[SplitLearning, ArrayRecord]:
    random.seed(0)  # of which device comes first in a sample
    run = strategy(seeded(ServerHalf), nn.CrossEntropyLoss(), ADAM, **options)
    arrays = ArrayRecord(seeded(half).state_dict())
    result = run.start(LocalGrid(app, 3, workers=0), arrays, rounds)
    return run, result.arrays


def sample(kind: type[FedAvg] = FedAvg, **options: Any) -> Strategy:
    return kind(min_available_nodes=3, fraction_evaluate=0.0, **options)


def in_turn() -> RoundRobin:
    return RoundRobin(min_available_nodes=3, fraction_evaluate=0.0)


@pytest.mark.parametrize(
    ("strategy", "devices", "failed"),
    [
        (SplitFC, in_turn(), "rounds 4 to 6"),
        (SplitLearning, sample(), "round 4"),
        (SplitLearning, sample(FedAdam), "round 4"),
        (SplitLearning, sample(FedMedian), "round 4"),
        (SplitLearning, sample(QFedAvg, client_learning_rate=0.01), "round 4"),
        (SplitFedV1, None, "round 4"),
        (SplitFedV2, None, "round 4"),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_the_run_ends_with_the_reason(
    strategy: type[SplitLearning], devices: Strategy | None, failed: str, tmp_path: Path
) -> None:
    app = failing(lambda device, server_round: server_round > 3)
    reason = (
        rf"every device failed in {failed}, device \d with: "
        r"ZeroDivisionError: the fault of device \d"
    )
    with pytest.raises(RunFailed, match=reason):
        start(app, 9, strategy, devices=devices, save_to=tmp_path)
    assert not list(tmp_path.iterdir()), "a model that no run finished"


def test_the_failed_rounds_are_among_the_runs_rounds() -> None:
    run = SplitFedV2(seeded(ServerHalf), nn.CrossEntropyLoss(), ADAM, devices=sample())
    app = failing(lambda device, server_round: server_round > 1)
    with pytest.raises(RunFailed):
        run.start(
            LocalGrid(app, 3),
            ArrayRecord(seeded(DeviceHalf).state_dict()),
            num_rounds=4,
        )
    first, second = run.progress.rows
    assert (first["failures"], first["steps"]) == ({}, 6)
    assert second["failures"].keys() == {"0", "1", "2"}
    assert second["loss"] is None


@pytest.mark.parametrize("devices", [in_turn, sample])
def test_a_device_alone_ends_no_run(devices: Callable[[], Strategy]) -> None:
    run, _ = start(failing(lambda device, _: device == 1), 6, devices=devices())
    failed = [list(row["failures"]) for row in run.progress.rows]
    alone = [[], ["1"], []] * 2
    assert failed == (alone if isinstance(run.devices, RoundRobin) else 6 * [["1"]])


def test_how_many_such_rounds_end_a_run_is_a_setting() -> None:
    app = failing(lambda device, server_round: server_round in (2, 3, 5, 6, 7))
    with pytest.raises(RunFailed, match="in rounds 5 to 7"):
        start(app, 9, devices=sample(), max_failed_rounds=3)
    run, _ = start(app, 9, devices=sample(), max_failed_rounds=4)
    assert len(run.progress.rounds) == 9
    with pytest.raises(ValueError, match="max_failed_rounds is 0, wanted 1 or more"):
        start(app, 9, max_failed_rounds=0)


@pytest.mark.parametrize("devices", [in_turn, sample])
def test_a_process_of_the_simulation_that_dies_ends_the_run(
    devices: Callable[[], Strategy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower would give it most devices of the later rounds, and each would fail."""
    app = failing(lambda device, at: (device, at) == (1, 2), "The actor is dead")
    halves, checkpoint = tmp_path / "halves", tmp_path / "checkpoint"

    def run() -> SplitLearning:
        made = {"devices": devices(), "save_to": halves, "checkpoint": checkpoint}
        return start(app, 4, **made)[0]

    monkeypatch.setattr(failed_rounds, "has_ray", lambda: True)
    with pytest.raises(SimulationBroken, match=r"died in round 2, .*; device 1 with: "):
        run()
    assert (halves / "joined.pt").exists()
    # in new processes it goes on; of a single turn nothing is left, and it is made again
    app = GOOD
    assert [row["round"] for row in run().progress.rows][-1] == 4


def test_only_in_a_simulation_does_that_end_the_run() -> None:
    app = failing(lambda device, at: device == 1, "The actor is dead")
    run, _ = start(app, 4, devices=sample())
    assert [list(row["failures"]) for row in run.progress.rows] == 4 * [["1"]]


def test_fewer_turns_than_devices_that_all_fail_are_no_run(tmp_path: Path) -> None:
    with pytest.raises(
        RunFailed,
        match=r"nothing was trained: .* in rounds 1 to 2, .*the fault of device 1",
    ):
        start(failing(lambda *_: True), 2, devices=in_turn(), save_to=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("devices", [in_turn, sample])
def test_the_run_goes_on_once_the_cause_is_cured(
    devices: Callable[[], Strategy], tmp_path: Path
) -> None:
    """From the round before the failed ones, to what a run without a fault has."""
    for _ in range(2):
        with pytest.raises(RunFailed):
            start(
                failing(lambda device, server_round: server_round > 2),
                6,
                devices=devices(),
                checkpoint=tmp_path,
            )
    _, cured = start(GOOD, 6, devices=devices(), checkpoint=tmp_path)
    _, whole = start(GOOD, 6, devices=devices())
    assert same(cured.to_torch_state_dict(), whole.to_torch_state_dict())


# -- arrays that overflow together -----------------------------------------------------

WEIGHT = "layers.0.weight"


class WithTable(DeviceHalf):
    """Has large numbers from the start, so that devices may reply with such."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.full((2,), 2e18))


WITH_TABLE = SplitClientApp(WithTable, lambda context: (batches(2), batches(1)), ADAM)
start_with_table = partial(start, half=WithTable)


def large(rounds: Collection[int]) -> App:
    """An app whose devices reply with larger numbers in some rounds, finite ones."""

    def app(message: Message, context: Context) -> Message:
        reply = WITH_TABLE(message, context)
        trains = message.metadata.message_type == "train"
        if trains and Ticket.from_message(message).server_round in rounds:
            arrays = reply.content.array_records["arrays"]
            arrays["table"] = Array(np.full(2, 3e38, np.float32))
        return reply

    return app


class Doubling(Remembering):
    """Counts its rounds, and doubles the table."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        arrays, metrics = super().aggregate_train(server_round, replies)
        arrays["table"] = Array(2 * arrays["table"].numpy())
        return arrays, metrics


OVERFLOWING = pytest.mark.parametrize(
    "devices",
    [
        partial(sample, FedYogi),
        partial(sample, FedAvgM, server_momentum=0.9, server_learning_rate=2.0),
        partial(sample, Doubling),
        lambda: RoundRobin(
            turns_at_once=3, min_available_nodes=3, fraction_evaluate=0.0
        ),
    ],
    ids=["FedYogi", "FedAvgM", "Resumable", "RoundRobin"],
)


@OVERFLOWING
def test_a_half_that_overflows_is_a_round_that_failed(
    devices: Callable[[], Strategy], tmp_path: Path
) -> None:
    name = type(devices()).__name__
    reason = (
        rf"every device failed in round 3, device \d with: what {name} made of the "
        r"devices' arrays is not finite: .*array 'table'"
    )
    with pytest.raises(RunFailed, match=reason):
        start_with_table(large([3]), 5, devices=devices(), checkpoint=tmp_path)
    state = load_checkpoint(tmp_path)
    assert state is not None
    assert state["round"] == 2
    _, cured = start_with_table(WITH_TABLE, 5, devices=devices(), checkpoint=tmp_path)
    _, whole = start_with_table(WITH_TABLE, 5, devices=devices())
    assert same(cured.to_torch_state_dict(), whole.to_torch_state_dict())


@OVERFLOWING
def test_training_goes_on_after_a_half_that_overflowed(
    devices: Callable[[], Strategy],
) -> None:
    after_round = {}

    def evaluate(server_round: int, arrays: ArrayRecord) -> None:
        after_round[server_round] = arrays.to_torch_state_dict()

    run = SplitLearning(
        seeded(ServerHalf),
        nn.CrossEntropyLoss(),
        ADAM,
        devices=devices(),
        max_failed_rounds=2,
    )
    arrays = ArrayRecord(seeded(WithTable).state_dict())
    run.start(LocalGrid(large([2]), 3), arrays, 3, evaluate_fn=evaluate)
    assert [len(row["failures"]) for row in run.progress.rows] == [0, 3, 0]
    assert same(after_round[1], after_round[2])
    change = (after_round[3][WEIGHT] - after_round[2][WEIGHT]).abs()
    assert (change > 0).all()
    assert (change < 10).all()
    if isinstance(run.devices, Doubling):
        assert run.devices.rounds == 2


def test_halves_that_overflow_in_a_row_end_the_run() -> None:
    with pytest.raises(RunFailed, match=r"in rounds 3 to 4, .*max_failed_rounds is 2"):
        start_with_table(
            large([1, 3, 4]), 5, devices=sample(FedYogi), max_failed_rounds=2
        )
    with pytest.raises(RunFailed, match="nothing was trained"):
        start_with_table(large([1]), 1, devices=sample(FedYogi), max_failed_rounds=2)


class Refusing(Remembering):
    """Refuses what comes in some rounds, as Flower's strategies do."""

    refused: Collection[int] = (2,)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        found = super().aggregate_train(server_round, replies)
        if server_round in self.refused:
            raise AggregationError("a metric is missing")
        return found


def test_replies_that_a_strategy_refuses_are_a_round_that_failed() -> None:
    reason = r"round 2, device \d with: Refusing combines none .* a metric is missing"
    with pytest.raises(RunFailed, match=reason):
        start(GOOD, 3, devices=sample(Refusing))
    run, _ = start(GOOD, 3, devices=sample(Refusing), max_failed_rounds=2)
    assert [len(row["failures"]) for row in run.progress.rows] == [0, 3, 0]
    assert isinstance(run.devices, Refusing)
    assert run.devices.rounds == 2


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_mask_of_infinities_overflows_nothing() -> None:
    """Entries that were not finite from the start may become anything."""

    class Masked(DeviceHalf):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))

    app = SplitClientApp(Masked, lambda context: (batches(2), batches(1)), ADAM)
    run = SplitLearning(
        seeded(ServerHalf), nn.CrossEntropyLoss(), ADAM, devices=sample(FedAdam)
    )
    run.start(LocalGrid(app, 3), ArrayRecord(seeded(Masked).state_dict()), 1)
    assert run.ledger.failures(1) == {}


def test_an_error_of_several_lines_is_told_as_a_whole() -> None:
    def app(message: Message, context: Context) -> Message:
        DeviceHalf().load_state_dict({})
        raise AssertionError("weights are missing")

    why = r"Error\(s\) in loading state_dict for DeviceHalf: Missing key\(s\).*weight"
    with pytest.raises(RunFailed, match=why):
        start(app, rounds=1, devices=sample())


def test_a_run_ends_with_why_training_failed_whatever_evaluation_did() -> None:
    def app(message: Message, context: Context) -> Message:
        raise ZeroDivisionError(f"the fault of {message.metadata.message_type}")

    devices = FedAvg(min_available_nodes=3)
    with pytest.raises(RunFailed, match="the fault of train"):
        start(app, rounds=1, devices=devices, max_failed_rounds=2)


def test_failures_of_training_are_none_of_evaluation() -> None:
    run, _ = start(
        failing(lambda device, number: device == 0),
        rounds=1,
        devices=FedAvg(min_available_nodes=3),
    )
    assert run.ledger.failures(1, "train").keys() == {"0"}
    assert run.ledger.failures(1, "evaluate") == {}
    assert run.ledger.failures(1).keys() == {"0"}
