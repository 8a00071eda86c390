"""Devices that stop, go on for ever, lie, come and leave.

The run goes on with the others, and says who failed.
"""

import multiprocessing
import os
import signal
import threading
import time
from functools import partial

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from torch import Tensor, nn

from flwr_splitfc import (
    EndpointConfig,
    Limits,
    SplitClientApp,
    SplitFedV1,
    SplitLearning,
    connect,
    cut_codec,
)
from flwr_splitfc.exchange import HalfTrainer, Session, SharedHalf, SplitEndpoint
from flwr_splitfc.exchange.device.stream import Stream
from flwr_splitfc.exchange.protocol.ticket import Ticket
from tests.halves import DeviceHalf, ServerHalf, batches, same, seeded, weights
from tests.local_grid import LocalGrid

SGD = partial(torch.optim.SGD, lr=0.1)
GOOD = SplitClientApp(DeviceHalf, lambda context: (batches(3), batches(1)), SGD)


def run(
    bad_turn, grid_type: type[LocalGrid] = LocalGrid, rounds: int = 3, **limits
) -> SplitLearning:
    """Train three devices in each round; number 1 does `bad_turn` in the second."""

    def app(message, context):
        is_device_one = context.node_config["partition-id"] == 1
        if is_device_one and message.metadata.message_type == "train":
            ticket = Ticket.from_message(message)
            if ticket.server_round == 2:
                return bad_turn(message, context)
        return GOOD(message, context)

    return run_app(app, grid_type, rounds, **limits)


def run_app(
    app, grid_type: type[LocalGrid] = LocalGrid, rounds: int = 3, **limits
) -> SplitLearning:
    """Train three devices in each round."""
    strategy = SplitLearning(
        seeded(ServerHalf),
        nn.CrossEntropyLoss(),
        SGD,
        devices=FedAvg(min_train_nodes=1, min_available_nodes=1, fraction_evaluate=0.0),
        endpoint=EndpointConfig(limits=Limits(**limits)),
    )
    arrays = ArrayRecord(seeded(DeviceHalf).state_dict())
    strategy.start(
        grid_type(app, 3, workers=3),
        arrays,
        rounds,
        train_config=ConfigRecord({"seed": 0}),
        timeout=60,
    )
    return strategy


def only_device_one_failed(strategy: SplitLearning, why: str) -> None:
    ledger = strategy.ledger
    assert not ledger.failures(1)
    assert ledger.failures(2).keys() == {"1"}
    assert why in ledger.failures(2)["1"]
    assert not ledger.failures(3)
    assert ledger.of(1, "train").steps == 9
    assert ledger.of(3, "train").steps == 9
    assert_finite(strategy)


def assert_finite(strategy: SplitLearning) -> None:
    for tensor in weights(strategy.server_model).values():
        assert tensor.isfinite().all()


def test_one_that_stops_answering():
    the_run_is_over = threading.Event()

    def stall(message, context):
        with connect(message, context) as session:
            x, y = batches(1)[0]
            session.loss(seeded(DeviceHalf)(x), y)
            the_run_is_over.wait()

    strategy = run(stall, idle_timeout_s=2.0)
    the_run_is_over.set()
    only_device_one_failed(strategy, "silent for 2 s")
    assert strategy.ledger.of(2, "train").steps == 7


def test_one_that_never_replies_after_its_session():
    the_run_is_over = threading.Event()

    def silent(message, context):
        with connect(message, context):
            pass
        the_run_is_over.wait()

    strategy = run(silent, reply_timeout_s=2.0)
    the_run_is_over.set()
    only_device_one_failed(strategy, "no reply within 2 s after its session")


def test_one_that_never_opens_its_ticket():
    the_run_is_over = threading.Event()

    def never(message, context):
        the_run_is_over.wait()

    strategy = run(never, open_timeout_s=2.0)
    the_run_is_over.set()
    only_device_one_failed(strategy, "no session opened within 2 s")
    assert strategy.ledger.of(2, "train").steps == 6


def test_one_that_waits_while_others_train_is_in_time():
    """In a simulation few processes serve all devices, one after another."""
    one_begins = threading.Event()

    def app(message, context):
        is_train = message.metadata.message_type == "train"
        if not is_train or Ticket.from_message(message).server_round != 2:
            return GOOD(message, context)
        if context.node_config["partition-id"] == 1:
            time.sleep(4.0)
            one_begins.set()
            return GOOD(message, context)
        return slowly(message, context)

    def slowly(message, context):
        half = seeded(DeviceHalf)
        with connect(message, context) as session:
            x, y = batches(1)[0]
            session.loss(half(x), y)
            while not one_begins.wait(0.05):
                session.loss(half(x), y)
            metrics = MetricRecord(session.metrics())
        arrays = ArrayRecord(half.state_dict())
        content = RecordDict({"arrays": arrays, "metrics": metrics})
        return Message(content, reply_to=message)

    strategy = run_app(app, open_timeout_s=2.0)
    assert [strategy.ledger.failures(number) for number in (1, 2, 3)] == [{}, {}, {}]


def test_one_that_asks_now_and_then_for_ever():
    the_run_is_over = threading.Event()

    def dawdle(message, context):
        x, _ = batches(1)[0]
        with connect(message, context) as session:
            while not the_run_is_over.wait(0.05):
                session.predict(seeded(DeviceHalf)(x))

    strategy = run(dawdle, turn_timeout_s=2.0)
    the_run_is_over.set()
    only_device_one_failed(strategy, "its turn took more than 2 s")


def test_one_that_goes_on_for_ever():
    def endless(message, context):
        with connect(message, context) as session:
            while True:
                x, y = batches(1)[0]
                session.loss(seeded(DeviceHalf)(x), y)

    strategy = run(endless, max_steps=20)
    only_device_one_failed(strategy, "a session may take 20 steps")
    assert strategy.ledger.of(2, "train").steps == 26


def copied_half(num_devices: int, **limits) -> dict[str, Tensor]:
    """The mean of the server half's copies; device 1 trains on ten times as much."""

    def load_data(context):
        is_greedy = context.node_config["partition-id"] == 1
        return batches(30 if is_greedy else 3), None

    devices = FedAvg(
        min_train_nodes=1, min_available_nodes=num_devices, fraction_evaluate=0.0
    )
    strategy = SplitFedV1(
        seeded(ServerHalf),
        nn.CrossEntropyLoss(),
        SGD,
        devices=devices,
        endpoint=EndpointConfig(limits=Limits(**limits)),
    )
    app = SplitClientApp(DeviceHalf, load_data, SGD)
    arrays = ArrayRecord(seeded(DeviceHalf).state_dict())
    strategy.start(LocalGrid(app, num_devices), arrays, 1)
    return weights(strategy.server_model)


def test_one_with_more_samples_than_a_turn_may_have_is_in_no_mean_of_copies():
    of_device_zero = copied_half(1)
    assert not same(copied_half(2), of_device_zero)
    assert same(copied_half(2, max_steps=3), of_device_zero)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_one_whose_features_are_no_numbers_or_huge(value):
    def lie(message, context):
        with connect(message, context) as session:
            x, y = batches(1)[0]
            features = seeded(DeviceHalf)(x)
            session.loss(features * value, y)

    strategy = run(lie)
    assert strategy.ledger.failures(2).keys() == {"1"}
    assert_finite(strategy)
    assert strategy.ledger.of(3, "train").steps == 9


def test_one_that_raises():
    def broken(message, context):
        raise OSError("no space left on device")

    only_device_one_failed(run(broken), "OSError: no space left on device")


class Changing(LocalGrid):
    """Device 2 joins after the first train message, device 0 leaves after that."""

    def get_node_ids(self):
        if not self.trained:
            return [1000, 1001]
        return [1000, 1001, 1002] if len(self.trained) < 5 else [1001, 1002]


def test_devices_that_join_and_leave():
    trained: dict[int, list[str]] = {}

    def note(message, context):
        if message.metadata.message_type == "train":
            server_round = Ticket.from_message(message).server_round
            name = str(context.node_config["partition-id"])
            trained.setdefault(server_round, []).append(name)
        return GOOD(message, context)

    strategy = SplitLearning(
        seeded(ServerHalf),
        nn.CrossEntropyLoss(),
        SGD,
        devices=FedAvg(min_train_nodes=1, min_available_nodes=1, fraction_evaluate=0.0),
    )
    strategy.start(Changing(note, 3), ArrayRecord(seeded(DeviceHalf).state_dict()), 3)
    assert {server_round: sorted(names) for server_round, names in trained.items()} == {
        1: ["0", "1"],
        2: ["0", "1", "2"],
        3: ["1", "2"],
    }
    for server_round in (1, 2, 3):
        assert not strategy.ledger.failures(server_round)


def endless_device(ticket: Ticket) -> None:
    x, y = batches(1)[0]
    with Session(ticket, Stream(ticket)) as session:
        while True:
            session.loss(seeded(DeviceHalf)(x), y)


@pytest.mark.parametrize(
    ("sign", "why"),
    [(signal.SIGSTOP, "silent for 0.5 s"), (signal.SIGKILL, "disconnected for 0.5 s")],
)
def test_a_process_that_is_stopped_or_killed_is_given_up(sign, why):
    half = HalfTrainer(seeded(ServerHalf), nn.CrossEntropyLoss(), SGD, device="cpu")
    config = EndpointConfig(limits=Limits(idle_timeout_s=0.5, reconnect_timeout_s=0.5))
    with SplitEndpoint(
        SharedHalf(half), cut_codec("float32"), config=config
    ) as endpoint:
        ticket = endpoint.issue("train", "0", 1)
        process = multiprocessing.get_context("spawn").Process(
            target=endless_device, args=(ticket,)
        )
        process.start()
        try:
            wait_until(lambda: half.steps > 20)
            os.kill(process.pid, sign)
            assert wait_until(endpoint.sweep) == {ticket.token: why}
        finally:
            process.kill()
            process.join()


def wait_until(condition, timeout_s: float = 60.0):
    deadline = time.monotonic() + timeout_s
    while not (value := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return value
