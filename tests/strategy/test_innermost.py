"""Strategies around the one that samples, as for differential privacy, in `devices`."""

import random
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
    FedXgbBagging,
    FedYogi,
    Strategy,
)
from torch import nn

from flwr_splitfc import (
    EndpointConfig,
    Limits,
    RoundRobin,
    RunFailed,
    SplitClientApp,
    SplitFC,
    SplitFedV1,
    SplitLearning,
)
from flwr_splitfc.exchange.protocol.ticket import Ticket
from tests.halves import DeviceHalf, ServerHalf, batches, same, seeded, weights
from tests.local_grid import App, LocalGrid

DEVICES = 3
ADAM = partial(torch.optim.Adam, lr=1e-2)
GOOD = SplitClientApp(DeviceHalf, lambda context: (batches(2), batches(1)), ADAM)

Change = Callable[[Message, Message], None]


def sample(kind: type[FedAvg] = FedAvg, **options: Any) -> FedAvg:
    return kind(fraction_evaluate=0.0, min_available_nodes=DEVICES, **options)


def clipped(inner: Strategy, norm: float = 1.0) -> Strategy:
    return DifferentialPrivacyServerSideFixedClipping(
        inner, noise_multiplier=1e-6, clipping_norm=norm, num_sampled_clients=DEVICES
    )


def noisy(inner: Strategy) -> Strategy:
    return DifferentialPrivacyClientSideFixedClipping(
        inner, noise_multiplier=0.0, clipping_norm=1.0, num_sampled_clients=DEVICES
    )


def adapted(inner: Strategy) -> Strategy:
    return DifferentialPrivacyServerSideAdaptiveClipping(
        inner, noise_multiplier=0.03, num_sampled_clients=DEVICES
    )


class Wrapper(Strategy):
    """Somebody's own, around another one."""

    def __init__(self, strategy: Strategy) -> None:
        self.strategy = strategy
        self.configure_train = strategy.configure_train  # type: ignore[method-assign]
        self.configure_evaluate = strategy.configure_evaluate  # type: ignore[method-assign]
        self.aggregate_evaluate = strategy.aggregate_evaluate  # type: ignore[method-assign]

    def configure_train(self, *arguments: Any) -> Any:
        raise NotImplementedError

    configure_evaluate = aggregate_evaluate = configure_train

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        return self.strategy.aggregate_train(server_round, replies)

    def summary(self) -> None:
        self.strategy.summary()


def odd(change: Change, rounds: Iterable[int] = range(1, 99)) -> App:
    """An app whose device 1 changes its reply in rounds of training."""

    def app(message: Message, context: Context) -> Message:
        reply = GOOD(message, context)
        if message.metadata.message_type != "train":
            return reply
        is_due = Ticket.from_message(message).server_round in rounds
        if is_due and context.node_config["partition-id"] == 1:
            change(message, reply)
        return reply

    return app


def fails(message: Message, reply: Message) -> None:
    raise ConnectionError("out of battery")


def comes_back_as_sent(message: Message, reply: Message) -> None:
    (arrays,) = message.content.array_records.values()
    reply.content["arrays"] = arrays


def has_weight(weight: float, message: Message, reply: Message) -> None:
    metrics = dict(reply.content.metric_records["metrics"])
    reply.content["metrics"] = MetricRecord({**metrics, "num-examples": weight})


def make(strategy: type[SplitLearning] = SplitLearning, **options: Any) -> Any:
    return strategy(seeded(ServerHalf), nn.CrossEntropyLoss(), ADAM, **options)


def start(split: SplitLearning, app: App, rounds: int, **options: Any) -> ArrayRecord:
    random.seed(0)  # of which device comes first in a sample
    arrays = ArrayRecord(seeded(DeviceHalf).state_dict())
    grid = LocalGrid(app, DEVICES, workers=0)
    return split.start(grid, arrays, rounds, **options).arrays


def is_as_before(arrays: ArrayRecord) -> bool:
    return same(arrays.to_torch_state_dict(), weights(seeded(DeviceHalf)))


@pytest.mark.parametrize("wrap", [clipped, adapted])
def test_a_round_whose_halves_are_dropped_is_warned_of(
    wrap: Callable[[Strategy], Strategy], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "flwr")
    split = make(devices=wrap(sample()))
    assert is_as_before(start(split, odd(fails), 1))
    warning = (
        "Round 1 leaves the device halves as they were: "
        f"{type(split.devices).__name__} around FedAvg combined none of the 2 that came "
        "(devices that failed: 1). "
    )
    assert warning in caplog.text
    told = [record for record in caplog.records if "Skipping" in record.getMessage()]
    assert [record.levelname for record in told] == ["INFO"]


@pytest.mark.parametrize("wrap", [clipped, adapted])
def test_one_whose_halves_are_combined_is_not(
    wrap: Callable[[Strategy], Strategy], caplog: pytest.LogCaptureFixture
) -> None:
    assert not is_as_before(start(make(devices=wrap(sample())), GOOD, 1))
    assert "as they were" not in caplog.text


@pytest.mark.parametrize("change", [fails, comes_back_as_sent])
def test_copies_of_the_server_half_are_dropped_with_the_device_halves(
    change: Change,
) -> None:
    """Both are averaged, or neither."""

    def server_after(rounds: int) -> dict[str, torch.Tensor]:
        split = make(SplitFedV1, devices=clipped(sample()), max_failed_rounds=2)
        start(split, odd(change, [2]), rounds)
        return weights(split.server_model)

    assert same(server_after(2), server_after(1))
    assert not same(server_after(3), server_after(2))


def test_a_half_that_all_share_has_been_trained() -> None:
    split = make(devices=clipped(sample()))
    assert is_as_before(start(split, odd(fails), 1))
    assert not same(weights(split.server_model), weights(seeded(ServerHalf)))


@pytest.mark.parametrize("weight", [-60, 1e300, float("nan")])
@pytest.mark.parametrize("wrap", [clipped, adapted, Wrapper])
def test_the_weights_of_replies_are_checked(
    wrap: Callable[[Strategy], Strategy], weight: float
) -> None:
    split = make(devices=wrap(sample()))
    start(split, odd(partial(has_weight, weight)), 1)
    (why,) = split.ledger.failures(1).values()
    assert why.startswith(f"metric 'num-examples' is {weight}, wanted more than 0")


@pytest.mark.parametrize("wrap", [clipped, adapted])
def test_a_half_that_comes_back_as_it_was_sent_is_a_round_that_failed(
    wrap: Callable[[Strategy], Strategy],
) -> None:
    """Flower's clipping divides by the norm of its change."""
    why = (
        r"every device failed in round 2, device \d with: \w+ around FedAvg cannot "
        r"combine the devices' arrays: ZeroDivisionError.*, and 1 of 3 came back as "
    )
    app = odd(comes_back_as_sent, [2])
    with pytest.raises(RunFailed, match=why):
        start(make(devices=wrap(sample())), app, 3)
    split = make(devices=wrap(sample()), max_failed_rounds=2)
    assert not is_as_before(start(split, app, 3))
    assert [len(row["failures"]) for row in split.progress.rows] == [0, 3, 0]


def test_what_the_innermost_remembers_goes_back_after_an_overflow() -> None:
    class WithTable(DeviceHalf):
        def __init__(self) -> None:
            super().__init__()
            # so large that a reply may hold what overflows when it is squared
            self.register_buffer("table", torch.full((2,), 2e18))

    app = SplitClientApp(WithTable, lambda context: (batches(2), batches(1)), ADAM)

    def large(message: Message, context: Context) -> Message:
        reply = app(message, context)
        trains = message.metadata.message_type == "train"
        if trains and Ticket.from_message(message).server_round == 2:
            arrays = reply.content.array_records["arrays"]
            arrays["table"] = Array(np.full(2, 3e38, np.float32))
        return reply

    devices = sample(FedYogi)
    remembered = []

    def evaluate(server_round: int, arrays: ArrayRecord) -> None:
        if server_round:
            remembered.append({name: v.copy() for name, v in devices.v_t.items()})

    split = make(devices=noisy(devices), max_failed_rounds=2)
    arrays = ArrayRecord(seeded(WithTable).state_dict())
    split.start(LocalGrid(large, DEVICES), arrays, 2, evaluate_fn=evaluate)
    assert [len(row["failures"]) for row in split.progress.rows] == [0, 3]
    first, second = remembered
    assert all((first[name] == second[name]).all() for name in first)


@pytest.mark.parametrize("wrap", [clipped, adapted, Wrapper])
@pytest.mark.parametrize("setting", ["min_available_nodes", "min_train_nodes"])
def test_a_run_waits_no_longer_than_its_limit(
    wrap: Callable[[Strategy], Strategy], setting: str
) -> None:
    endpoint = EndpointConfig(limits=Limits(wait_timeout_s=0.3))
    devices = wrap(FedAvg(fraction_evaluate=0.0, **{setting: DEVICES + 1}))
    with pytest.raises(RunFailed, match=rf"3 of 4 devices .* Lower {setting}"):
        start(make(devices=devices, endpoint=endpoint), GOOD, 1)


@pytest.mark.parametrize(
    ("devices", "wanted"),
    [
        (RoundRobin(), "relay"),
        (Wrapper(RoundRobin()), "relay"),
        (Wrapper(Wrapper(RoundRobin())), "relay"),
        (Wrapper(FedAvg()), "per-device"),
        # the next device would get what clipping and noise hide
        (clipped(RoundRobin()), "per-device"),
        (Wrapper(clipped(RoundRobin())), "per-device"),
    ],
)
def test_optimizer_state_goes_where_the_innermost_hands_the_half(
    devices: Strategy, wanted: str
) -> None:
    assert make(devices=devices).optimizer_state == wanted


def test_each_device_in_turn_has_its_turn_before_a_run_fails() -> None:
    def app(message: Message, context: Context) -> Message:
        raise ConnectionError("out of battery")

    in_turn = RoundRobin(
        turns_at_once=2, min_available_nodes=DEVICES, fraction_evaluate=0.0
    )
    with pytest.raises(RunFailed, match=r"every device failed in rounds 1 to 2,"):
        start(make(devices=Wrapper(in_turn)), app, 9)


def test_what_combines_trees_is_refused_in_a_wrapper_too() -> None:
    with pytest.raises(ValueError, match="devices is a FedXgbBagging"):
        make(devices=clipped(FedXgbBagging()))


def test_the_log_names_all(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "flwr")
    start(make(SplitFC, devices=clipped(sample())), GOOD, 1)
    line = "Device halves: DifferentialPrivacyServerSideFixedClipping around FedAvg"
    assert line in caplog.text


# -- runs that an error ends ------------------------------------------------------------


class Exhausted(Exception):
    """As Flower's PrivacyBudgetExhausted."""


class Accounted(Wrapper):
    """Has a budget for two rounds."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        if server_round > 2:
            raise Exhausted
        return super().aggregate_train(server_round, replies)


def no_test_set(server_round: int, arrays: ArrayRecord) -> None:
    if server_round == 3:
        raise Exhausted


@pytest.mark.parametrize(
    ("wrap", "evaluate_fn"), [(Accounted, None), (Wrapper, no_test_set)]
)
def test_an_error_leaves_the_model_of_the_rounds_before(
    wrap: type[Wrapper], evaluate_fn: Any, tmp_path: Path
) -> None:
    split = make(devices=wrap(sample()), save_to=tmp_path)
    with pytest.raises(Exhausted):
        start(split, GOOD, 5, evaluate_fn=evaluate_fn)
    wanted = start(make(devices=sample()), GOOD, 2)
    saved = torch.load(tmp_path / "device.pt", weights_only=True)
    assert same(saved, wanted.to_torch_state_dict())


def test_one_before_the_first_round_leaves_none(tmp_path: Path) -> None:
    def broken(server_round: int, arrays: ArrayRecord) -> None:
        raise Exhausted

    with pytest.raises(Exhausted):
        start(make(save_to=tmp_path), GOOD, 5, evaluate_fn=broken)
    assert not list(tmp_path.iterdir())
