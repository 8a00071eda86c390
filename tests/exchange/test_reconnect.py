"""A connection that breaks is opened again, and no step is lost or applied twice."""

import queue
import time
from contextlib import ExitStack, suppress
from types import SimpleNamespace

import grpc
import pytest
from torch import nn

from flwr_splitfc import EndpointConfig, Limits, connect, cut_codec
from flwr_splitfc.codec import CutCodec, pack_labels
from flwr_splitfc.exchange import (
    DeviceStates,
    EndpointUnreachable,
    SessionCancelled,
    SplitEndpoint,
    Traffic,
)
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.tensors import to_matrix
from flwr_splitfc.exchange.server.endpoint import server_session
from tests.cutting_proxy import CuttingProxy
from tests.exchange.raw_device import RawDevice, open_frame, session_call
from tests.exchange.server_halves import ADAM, shared_half
from tests.halves import DeviceHalf, batches, same, seeded, weights
from tests.local_grid import ticket_message

CODEC = cut_codec("float32")
CLOSE = pb.DeviceFrame(number=1, close=pb.Close())


def make_endpoint(
    codec: CutCodec = CODEC, pipeline_depth: int = 1, **limits
) -> SplitEndpoint:
    return SplitEndpoint(
        shared_half(),
        codec,
        states=DeviceStates("relay"),
        pipeline_depth=pipeline_depth,
        config=EndpointConfig(limits=Limits(**limits)),
    )


def run(endpoint: SplitEndpoint, turns: int, steps: int, **changes) -> nn.Module:
    """Devices in turn train one device half, with the optimizer's state relayed.

    `changes` falsify fields of their tickets.
    """
    device_half = seeded(DeviceHalf)
    for turn in range(turns):
        optimizer = ADAM(device_half.parameters())
        message = ticket_message(endpoint, device=str(turn % 3), **changes)
        with connect(message, optimizer=optimizer) as session:
            for loss in session.pipelined(device_half, batches(steps, seed=turn)):
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        endpoint.replied(session.ticket.token)
    return device_half


@pytest.mark.parametrize(
    ("cuts", "turns", "depth"),
    [
        (100, 4, 1),
        (100, 4, 4),
        pytest.param(1000, 40, 1, marks=pytest.mark.slow),
        pytest.param(1000, 40, 4, marks=pytest.mark.slow),
    ],
)
def test_cuts_leave_no_trace(cuts, turns, depth):
    codec = cut_codec("splitfc", uplink_bits=3, downlink_bits=3)
    with make_endpoint(codec, depth) as endpoint:
        device_half = run(endpoint, turns, steps=40)
        server_half = weights(endpoint.halves.half.model)
        digest = endpoint.ledger.digest()
    with (
        make_endpoint(codec, depth) as endpoint,
        CuttingProxy(endpoint.address, cuts, most_bytes=3000) as proxy,
    ):
        disturbed = run(endpoint, turns, steps=40, address=proxy.address)
        traffic = endpoint.ledger.total("train")
        assert proxy.cuts_left <= 0
    assert same(weights(disturbed), weights(device_half))
    assert same(weights(endpoint.halves.half.model), server_half)
    assert endpoint.ledger.digest() == digest
    assert endpoint.halves.half.steps == traffic.steps == 40 * turns
    # the others were cut before they were sessions
    assert cuts // 10 < traffic.reconnects <= cuts
    assert 0 < traffic.uplink_bytes["resent"] < traffic.uplink_bytes["features"]


def step_frame(number: int, seed: int = 0) -> pb.DeviceFrame:
    x, y = batches(1, seed=seed)[0]
    array, _ = CODEC.encode_features(seeded(DeviceHalf)(x))
    step = pb.Step(features=to_matrix(array), labels=pack_labels(y))
    return pb.DeviceFrame(number=number, step=step)


def test_a_frame_that_comes_again_is_answered_again_and_not_applied():
    with make_endpoint() as endpoint:
        ticket = endpoint.issue("train", "0", 1)
        first = RawDevice(endpoint, ticket)
        answer = first.ask(step_frame(1))
        again = first.ask(step_frame(1, seed=7))
        first.drop()
        second = RawDevice(endpoint, ticket)
        assert second.ask(step_frame(1)) == again == answer
        assert endpoint.halves.half.steps == 1
        second.ask(step_frame(2))
        assert endpoint.halves.half.steps == 2
        assert second.ask(step_frame(4)).refused.reason == pb.PROTOCOL


def test_frames_that_are_sent_again_together_share_a_round_trip():
    steps = 8
    with make_endpoint(pipeline_depth=steps) as endpoint:
        ticket = endpoint.issue("train", "0", 1)
        for _ in range(3):  # the answers get lost twice
            device = RawDevice(endpoint, ticket)
            for number in range(1, steps + 1):
                device.ask(step_frame(number))
            device.drop()
        # nothing is sent again on this connection
        device = RawDevice(endpoint, ticket)
        close = pb.Close(round_trips=1)
        device.ask(pb.DeviceFrame(number=steps + 1, close=close))
        device.drop()
        traffic = endpoint.ledger.of(1, "train")
        (link,) = endpoint.ledger.links(1, "train").values()
    assert traffic.steps == steps
    assert traffic.reconnects == 3
    # the steps, twice again, and Close
    assert traffic.round_trips == 1 + 2 + 1
    # bytes up and down and round trips, and what went up and came down at once
    assert len(link) == 5


def test_frames_that_come_late_end_their_streams_and_not_the_session():
    with make_endpoint(max_sessions=1, max_waiting=1) as endpoint, ExitStack() as end:
        ticket = endpoint.issue("train", "0", 1)
        device = RawDevice(endpoint, ticket)
        end.callback(device.drop)
        for number in (1, 2):
            device.ask(step_frame(number))
        for _ in range(50):  # more than there are threads
            late = RawDevice(endpoint, ticket)
            end.callback(late.drop)
            late.send(step_frame(1))
            assert list(late._replies) == []
        assert device.ask(step_frame(3)).stepped.loss > 0
        assert endpoint.halves.half.steps == 3


def test_a_device_may_come_back_before_its_old_connection_is_seen_to_break():
    with make_endpoint() as endpoint:
        endpoint.issue("train", "0", 1)
        (session,) = endpoint._registry.sessions()
        old, new = Connection(), Connection()
        for connection in (old, new):
            session.await_open(connection)
            session.open(open_frame(), connection)
        assert not session.lost(old)
        assert session.connected
        assert session.answer(step_frame(1), new).stepped.loss > 0
        assert session.lost(new)


def test_close_is_answered_again_after_the_session():
    with make_endpoint() as endpoint:
        ticket = endpoint.issue("train", "0", 1)
        for _ in range(2):
            device = RawDevice(endpoint, ticket)
            assert device.ask(CLOSE).WhichOneof("kind") == "closed"
            device.drop()
        assert endpoint.ledger.of(1, "train").sessions == 1


@pytest.mark.parametrize("told", [float("nan"), float("inf"), -1.0, 0.0, 1e300])
def test_times_that_cannot_be_are_not_entered(told: float) -> None:
    with make_endpoint() as endpoint:
        disbelieved = traffic_of(endpoint, 1, told)
        believed = traffic_of(endpoint, 2, 1000.0)
    assert disbelieved.device_codec_seconds == disbelieved.link_seconds == 0
    # less the server's own time
    assert believed.device_codec_seconds == 1000 > believed.link_seconds > 0


def traffic_of(endpoint: SplitEndpoint, server_round: int, seconds: float) -> Traffic:
    """What is entered of a device that tells these seconds as its times."""
    device = RawDevice(endpoint, endpoint.issue("train", "0", server_round))
    device.ask(step_frame(1))
    close = pb.Close(codec_seconds=seconds, waited_seconds=seconds)
    device.ask(pb.DeviceFrame(number=2, close=close))
    device.drop()
    return endpoint.ledger.of(server_round, "train")


def test_nothing_is_trained_after_close():
    with make_endpoint() as endpoint:
        ticket = endpoint.issue("train", "0", 1)
        device = RawDevice(endpoint, ticket)
        device.ask(CLOSE)
        device.drop()
        answer = RawDevice(endpoint, ticket).ask(step_frame(2))
        assert answer.refused.reason == pb.PROTOCOL
        assert endpoint.halves.half.steps == 0


def test_nothing_is_trained_after_the_reply():
    with make_endpoint() as endpoint:
        ticket = endpoint.issue("train", "1", 1)
        device = RawDevice(endpoint, ticket)
        device.ask(step_frame(1))
        endpoint.replied(ticket.token)
        assert device.ask(step_frame(2)).refused.reason == pb.EXPIRED
        assert endpoint.halves.half.steps == 1


def _opened(endpoint, ticket):
    """A device tries again where a silent connection that came later took its place."""
    while True:
        with suppress(grpc.RpcError):
            return RawDevice(endpoint, ticket)


def test_a_token_holds_one_silent_connection_at_most():
    with make_endpoint(max_sessions=1) as endpoint:
        ticket = endpoint.issue("train", "0", 1)
        held = queue.SimpleQueue()
        with grpc.insecure_channel(endpoint.address) as channel:
            for _ in range(50):  # more than there are threads
                session_call(channel, ticket.token, iter(held.get, None))
            device = _opened(endpoint, ticket)
            assert device.ask(step_frame(1)).stepped.loss > 0
            device.drop()
            for _ in range(50):
                held.put(None)


def silent_stream(channel: grpc.Channel, token: str):
    """The server's frames on a stream on which nothing comes."""
    return session_call(channel, token, iter(queue.SimpleQueue().get, None))


def test_a_silent_stream_ends_with_its_round():
    with make_endpoint() as endpoint:
        token = endpoint.issue("train", "0", 1).token
        (session,) = endpoint._registry.sessions()
        with grpc.insecure_channel(endpoint.address) as channel:
            replies = silent_stream(channel, token)
            assert wait_until(lambda: session.unopened_s)
            endpoint.end_round([token])
            with pytest.raises(grpc.RpcError, match="CANCELLED"):
                next(replies)


def test_a_silent_stream_is_given_up_while_others_train():
    with make_endpoint(idle_timeout_s=0.5) as endpoint:
        token = endpoint.issue("train", "0", 1).token
        busy = RawDevice(endpoint, endpoint.issue("train", "1", 1))
        with grpc.insecure_channel(endpoint.address) as channel:
            replies = silent_stream(channel, token)
            number = 0
            while not (given_up := endpoint.sweep()):
                number += 1
                busy.ask(step_frame(number))
            assert given_up == {token: "silent for 0.5 s"}
            with pytest.raises(grpc.RpcError, match="CANCELLED"):
                next(replies)
        busy.drop()


def test_a_stream_that_comes_as_its_round_ends_is_refused(monkeypatch):
    with make_endpoint() as endpoint:
        token = endpoint.issue("train", "0", 1).token
        (session,) = endpoint._registry.sessions()
        await_open = session.await_open

        def too_late(connection):
            endpoint.end_round([token])
            await_open(connection)

        monkeypatch.setattr(session, "await_open", too_late)
        with grpc.insecure_channel(endpoint.address) as channel:
            answer = next(silent_stream(channel, token))
            assert answer.refused.reason == pb.EXPIRED


class Connection:
    """A connection that is never used."""

    def cancel(self):
        """End it."""


def test_a_device_comes_again_while_its_last_step_is_applied(monkeypatch):
    with make_endpoint() as endpoint:
        endpoint.issue("train", "0", 1)
        (session,) = endpoint._registry.sessions()
        first, second, third = Connection(), Connection(), Connection()
        session.await_open(first)
        session.open(open_frame(), first)
        session.answer(step_frame(1), first)
        session.lost(first)  # before `finish`, so that `open` does it
        finish = session.turn.finish

        def finish_as_the_third_comes():
            session.await_open(third)
            finish()

        monkeypatch.setattr(session.turn, "finish", finish_as_the_third_comes)
        session.await_open(second)
        session.open(open_frame(), second)
        assert session.open(open_frame(), third).WhichOneof("kind") == "opened"
        assert session.answer(step_frame(2), third).stepped.loss > 0


def test_a_device_that_has_just_come_is_not_silent(monkeypatch):
    with make_endpoint(idle_timeout_s=60) as endpoint:
        endpoint.issue("train", "0", 1)
        (session,) = endpoint._registry.sessions()
        silent_s = []

        def much_later():
            monkeypatch.undo()
            silent_s.append(session.unopened_s)
            return time.monotonic()

        session._last_seen -= 120
        clock = SimpleNamespace(monotonic=much_later)
        monkeypatch.setattr(server_session, "time", clock)
        session.await_open(Connection())
        assert silent_s == [0.0]


def test_what_was_refused_stays_refused():
    with make_endpoint() as endpoint:
        ticket = endpoint.issue("train", "0", 1)
        device = RawDevice(endpoint, ticket)
        refusal = device.ask(pb.DeviceFrame(number=1, step=pb.Step())).refused
        assert refusal.reason == pb.FEATURES
        assert RawDevice(endpoint, ticket).opened.refused == refusal


def test_another_process_cannot_take_a_session_over():
    with make_endpoint() as endpoint:
        ticket = endpoint.issue("train", "0", 1)
        device = RawDevice(endpoint, ticket)
        other = RawDevice(endpoint, ticket, nonce=b"x" * 16)
        assert other.opened.refused.reason == pb.TOKEN
        assert device.ask(step_frame(1)).stepped.loss > 0
        device.drop()


def test_the_old_connection_ends_when_the_session_moves_on():
    with make_endpoint() as endpoint:
        ticket = endpoint.issue("train", "0", 1)
        old = RawDevice(endpoint, ticket)
        new = RawDevice(endpoint, ticket)
        assert new.ask(step_frame(1)).WhichOneof("kind") == "stepped"
        with pytest.raises(grpc.RpcError):
            old.ask(step_frame(2))
        assert endpoint.halves.half.steps == 1
        new.drop()


def test_a_session_that_does_not_come_back_is_given_up():
    with make_endpoint(reconnect_timeout_s=0.1) as endpoint:
        ticket = endpoint.issue("train", "0", 1)
        device = RawDevice(endpoint, ticket)
        device.ask(step_frame(1))
        assert endpoint.sweep() == {}
        device.drop()
        given_up = wait_until(endpoint.sweep)
        assert given_up == {ticket.token: "disconnected for 0.1 s"}
        assert RawDevice(endpoint, ticket).opened.refused.reason == pb.CANCELLED
        assert endpoint.ledger.of(1, "train").steps == 1


def test_a_device_that_does_not_reply_after_its_session_is_given_up():
    with make_endpoint(reply_timeout_s=0.1) as endpoint:
        ticket = endpoint.issue("train", "0", 1)
        device = RawDevice(endpoint, ticket)
        device.ask(CLOSE)
        why = "no reply within 0.1 s after its session"
        assert wait_until(endpoint.sweep) == {ticket.token: why}
        device.drop()


def test_a_server_that_is_gone_for_good_is_named():
    x, y = batches(1)[0]
    features = seeded(DeviceHalf)(x)
    gone = (EndpointUnreachable, SessionCancelled)
    with make_endpoint(reconnect_timeout_s=0.5) as endpoint:
        message = ticket_message(endpoint)
        with pytest.raises(gone), connect(message) as session:
            session.loss(features, y)
            endpoint.__exit__(None, None, None)
            session.loss(features, y)


def wait_until(condition, timeout_s: float = 10.0):
    """What the condition gives as soon as that is true, or in the end."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value or time.monotonic() >= deadline:
            return value
        time.sleep(0.02)
