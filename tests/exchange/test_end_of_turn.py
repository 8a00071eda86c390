"""What a device leaves for its next turn: it comes with the ticket, and goes with the reply."""

import re
import threading
import time
from functools import partial
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Context, Message
from torch import nn

from flwr_splitfc import (
    EndpointConfig,
    Limits,
    RoundRobin,
    SplitClientApp,
    SplitLearning,
    connect,
    cut_codec,
)
from flwr_splitfc.codec import pack_labels
from flwr_splitfc.exchange import (
    DeviceStates,
    EndpointUnreachable,
    Session,
    SplitEndpoint,
    has_ticket,
)
from flwr_splitfc.exchange.device.stream import Stream
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.frames import FRAME_KEY, has_frame, server_frame
from flwr_splitfc.exchange.protocol.tensors import unpack_tensors
from flwr_splitfc.exchange.protocol.ticket import Ticket
from tests.exchange.raw_device import RawDevice
from tests.exchange.server_halves import shared_half
from tests.exchange.step_frames import step_frame
from tests.exchange.test_relayed_state import liar, like_weight
from tests.halves import DeviceHalf, ServerHalf, batches, seeded
from tests.local_grid import LocalGrid, ticket_message

ADAM = partial(torch.optim.Adam, lr=1e-2)
STEPS = 3
TRANSPORTS = ["stream", "messages"]
Loader = Any


def load_data(context: Context) -> Loader:
    return batches(STEPS), batches(1)


HONEST = SplitClientApp(DeviceHalf, load_data, ADAM)


class Noting:
    """An app whose device 1 of three does as it is told, and that notes what comes.

    `steps_before` are those that the optimizer state in each train message has behind
    it, turn by turn; None is for a message without state.
    """

    def __init__(self, device_one: Any) -> None:
        self.device_one = device_one
        self.steps_before: list[int | None] = []

    def __call__(self, message: Message, context: Context) -> Message:
        is_first = server_frame(message).number == 0
        if message.metadata.message_type == "train" and is_first:
            kept = unpack_tensors(server_frame(message).kept.optimizer)
            self.steps_before.append(int(kept["0.step"]) if kept else None)
            assert bool(kept) == has_frame(message)
        is_device_one = context.node_config["partition-id"] == 1
        app = self.device_one if is_device_one and has_ticket(message) else HONEST
        reply: Message = app(message, context)
        return reply


def run(app: Any, **options: Any) -> SplitLearning:
    """Four rounds of three devices in turn, of which device 1 is the second."""
    strategy = SplitLearning(
        seeded(ServerHalf),
        nn.CrossEntropyLoss(),
        ADAM,
        device="cpu",
        devices=RoundRobin(min_available_nodes=3, fraction_evaluate=0.0),
        **options,
    )
    arrays = ArrayRecord(seeded(DeviceHalf).state_dict())
    strategy.start(LocalGrid(app, 3, workers=1), arrays, 4)
    return strategy


def over(transport: str, **limits: Any) -> EndpointConfig:
    return EndpointConfig(transport=transport, limits=Limits(**limits))


def failures_of(strategy: SplitLearning) -> list[dict[str, str]]:
    return [strategy.ledger.failures(number) for number in (1, 2, 3, 4)]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_state_comes_with_the_message(transport: str) -> None:
    app = Noting(HONEST)
    strategy = run(app, endpoint=over(transport))
    assert failures_of(strategy) == [{}, {}, {}, {}]
    assert app.steps_before == [None, STEPS, 2 * STEPS, 3 * STEPS]
    state_bytes = [
        (traffic.downlink_bytes["state"], traffic.uplink_bytes["state"])
        for traffic in (strategy.ledger.of(number, "train") for number in (1, 2, 3, 4))
    ]
    # two moments and a count for each of two parameters
    size = 2 * 4 * (4 * 9 + 4) + 2 * 4
    assert state_bytes == [(0, size), (size, size), (size, size), (size, size)]


def test_state_needs_no_connection() -> None:
    with SplitEndpoint(
        shared_half(), cut_codec("float32"), states=DeviceStates("relay")
    ) as endpoint:
        half = seeded(DeviceHalf)
        x, y = batches(1)[0]
        optimizer = ADAM(half.parameters())
        with connect(ticket_message(endpoint), optimizer=optimizer) as session:
            session.loss(half(x), y).backward()
            optimizer.step()
            session.state["position"] = torch.tensor(7)
        endpoint.replied(session.ticket.token)
        # what is kept is not asked for again
        assert not RawDevice(endpoint, session.ticket).opened.opened.ByteSize()

        nobody = ticket_message(
            endpoint, address="127.0.0.1:9", reconnect_timeout_s=0.1
        )
        optimizer = ADAM(half.parameters())
        with (
            pytest.raises(EndpointUnreachable, match=r"127\.0\.0\.1:9"),
            connect(nobody, optimizer=optimizer) as session,
        ):
            assert session.state["position"] == 7
            assert optimizer.state_dict()["state"][0]["step"] == 1
            session.loss(half(x), y)


# -- a turn that does not come to its end ----------------------------------------------


def dies_before_its_reply(message: Message, context: Context) -> Message:
    """All steps are made, and the reply is ready."""
    reply = HONEST(message, context)
    if FRAME_KEY in reply.content and not _is_close(reply):
        return reply  # another message follows
    raise OSError("no space left on device")


def _is_close(reply: Message) -> bool:
    (data,) = reply.content[FRAME_KEY].values()
    return pb.DeviceFrame.FromString(data).WhichOneof("kind") == "close"


def own_loop_dies_before_its_reply(message: Message, context: Context) -> Message:
    """Close was answered already, on the stream."""
    half = seeded(DeviceHalf)
    optimizer = ADAM(half.parameters())
    with connect(message, context, optimizer=optimizer) as session:
        for x, y in batches(STEPS):
            session.loss(half(x), y).backward()
            optimizer.step()
    raise OSError("no space left on device")


def replies_with_nan(message: Message, context: Context) -> Message:
    reply = HONEST(message, context)
    if "arrays" in reply.content:
        half = seeded(DeviceHalf)
        torch.nn.init.constant_(half.layers[0].bias, torch.nan)
        reply.content["arrays"] = ArrayRecord(half.state_dict())
    return reply


UNRELAYABLE = SplitClientApp(
    DeviceHalf, load_data, liar({0: {"exp_avg": like_weight(float("nan"))}})
)


@pytest.mark.parametrize("optimizer_state", ["relay", "per-device"])
@pytest.mark.parametrize(
    ("device_one", "why", "transports"),
    [
        (dies_before_its_reply, "no space left on device", TRANSPORTS),
        (own_loop_dies_before_its_reply, "no space left on device", ["stream"]),
        (replies_with_nan, "'layers.0.bias' is not finite", TRANSPORTS),
    ],
)
def test_nothing_is_kept_of_a_turn_whose_reply_does_not_count(
    device_one: Any, why: str, transports: list[str], optimizer_state: str
) -> None:
    for transport in transports:
        app = Noting(device_one)
        options = {"optimizer_state": optimizer_state, "endpoint": over(transport)}
        strategy = run(app, **options)
        failures = failures_of(strategy)
        assert [each.keys() for each in failures] == [set(), {"1"}, set(), set()]
        assert re.search(why, failures[1]["1"])
        # device 1 trained in the second round, and device 0 in the first and last
        if optimizer_state == "relay":
            assert app.steps_before == [None, STEPS, STEPS, 2 * STEPS]
        else:
            assert app.steps_before == [None, None, None, STEPS]
            kept = strategy._run.device_states
            assert not kept.of("1").optimizer
            assert kept.of("2").optimizer


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_state_that_cannot_be_relayed_fails_its_device_alone(transport: str) -> None:
    app = Noting(UNRELAYABLE)
    strategy = run(app, endpoint=over(transport))
    failures = failures_of(strategy)
    assert [each.keys() for each in failures] == [set(), {"1"}, set(), set()]
    assert "'0.exp_avg' is not finite" in failures[1]["1"]
    assert app.steps_before == [None, STEPS, STEPS, 2 * STEPS]


def test_one_that_leaves_and_never_replies() -> None:
    the_run_is_over = threading.Event()

    def silent(message: Message, context: Context) -> Message:
        reply = HONEST(message, context)
        the_run_is_over.wait()
        return reply

    app = Noting(silent)
    # given up for its reply, and not for its silence
    config = over("stream", reply_timeout_s=2, idle_timeout_s=0.5)
    strategy = SplitLearning(
        seeded(ServerHalf),
        nn.CrossEntropyLoss(),
        ADAM,
        device="cpu",
        devices=RoundRobin(min_available_nodes=3, fraction_evaluate=0.0),
        endpoint=config,
    )
    arrays = ArrayRecord(seeded(DeviceHalf).state_dict())
    strategy.start(LocalGrid(app, 3, workers=2), arrays, 3)
    the_run_is_over.set()
    assert strategy.ledger.failures(2) == {"1": "no reply within 2 s after its session"}
    assert app.steps_before == [None, STEPS, STEPS]


# -- a device that leaves --------------------------------------------------------------


def leave(endpoint: SplitEndpoint) -> Session:
    """A session that is through, and whose device has left its stream."""
    ticket = endpoint.issue("train", "0", 1)
    x, y = batches(1)[0]
    with Session(ticket, Stream(ticket, closes_by_reply=True)) as session:
        session.loss(seeded(DeviceHalf)(x), y)
    (server_session,) = endpoint._registry.sessions()
    while not server_session.left_at:
        time.sleep(0.01)
    return session


def make_endpoint(**limits: Any) -> SplitEndpoint:
    return SplitEndpoint(
        shared_half(), cut_codec("float32"), config=over("stream", **limits)
    )


def test_a_device_that_leaves_is_not_lost(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "flwr")
    with make_endpoint(reconnect_timeout_s=0.05, idle_timeout_s=0.05) as endpoint:
        session = leave(endpoint)
        time.sleep(0.2)
        assert endpoint.sweep() == {}
        assert session.closing is not None
        answer = endpoint.deliver(session.ticket.token, session.closing)
        assert answer.WhichOneof("kind") == "closed"
        endpoint.replied(session.ticket.token)
    events = re.findall("split session (.*?):", caplog.text)
    assert events == ["opened", "left", "closed"]


def test_a_turn_that_takes_too_long_is_over_after_its_device_left() -> None:
    with make_endpoint(turn_timeout_s=0.05) as endpoint:
        session = leave(endpoint)
        time.sleep(0.1)
        why = {session.ticket.token: "its turn took more than 0.05 s"}
        assert endpoint.sweep() == why
        assert session.closing is not None
        answer = endpoint.deliver(session.ticket.token, session.closing)
        assert answer.refused.reason == pb.CANCELLED


def test_a_device_that_left_leaves_room_for_others() -> None:
    with make_endpoint(max_sessions=1) as endpoint:
        session = leave(endpoint)
        x, y = batches(1)[0]
        with connect(ticket_message(endpoint, device="1")) as other:
            other.loss(seeded(DeviceHalf)(x), y)
        assert session.closing is not None
        endpoint.deliver(session.ticket.token, session.closing)
        assert endpoint.ledger.of(1, "train").sessions == 2


def numbered_step(number: int) -> pb.DeviceFrame:
    x, y = batches(1)[0]
    frame = step_frame(seeded(DeviceHalf)(x), pack_labels(y))
    frame.number = number
    return frame


def test_a_stream_that_comes_late_brings_nobody_back() -> None:
    with make_endpoint(reconnect_timeout_s=0.05) as endpoint:
        ticket: Ticket = endpoint.issue("train", "0", 1)
        device = RawDevice(endpoint, ticket)
        for number in (1, 2):
            device.ask(numbered_step(number))
        device.send(pb.DeviceFrame(leave=pb.Leave()))
        assert list(device._replies) == []
        late = RawDevice(endpoint, ticket)
        late.send(numbered_step(1))
        assert list(late._replies) == []
        time.sleep(0.2)
        assert endpoint.sweep() == {}


def test_a_device_that_left_may_come_back() -> None:
    with make_endpoint(reconnect_timeout_s=0.1) as endpoint:
        ticket: Ticket = endpoint.issue("train", "0", 1)
        device = RawDevice(endpoint, ticket)
        device.send(pb.DeviceFrame(leave=pb.Leave()))
        assert list(device._replies) == []
        assert endpoint.sweep() == {}
        again = RawDevice(endpoint, ticket)
        again.ask(numbered_step(1))
        again.drop()
        while not endpoint.sweep():
            time.sleep(0.02)
        assert endpoint.sweep() == {ticket.token: "disconnected for 0.1 s"}
