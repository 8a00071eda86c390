"""A connection that breaks is opened again, and no step is lost or applied twice."""

import queue
import time
from functools import partial

import grpc
import pytest
import torch
from torch import nn

from flwr_splitfc import EndpointConfig, Limits, connect, cut_codec
from flwr_splitfc.codec import pack_labels
from flwr_splitfc.exchange import (
    DeviceStates,
    EndpointUnreachable,
    HalfTrainer,
    SessionCancelled,
    SharedHalf,
    SplitEndpoint,
)
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.rpc import SESSION_METHOD, TOKEN_KEY
from flwr_splitfc.exchange.protocol.ticket import PROTOCOLS, Ticket
from tests.cutting_proxy import CuttingProxy
from tests.halves import DeviceHalf, ServerHalf, batches, same, seeded, weights
from tests.local_grid import ticket_message

ADAM = partial(torch.optim.Adam, lr=1e-2)


def make_endpoint(codec: str = "float32", **limits) -> SplitEndpoint:
    half = HalfTrainer(seeded(ServerHalf), nn.CrossEntropyLoss(), ADAM, device="cpu")
    config = EndpointConfig(limits=Limits(**limits))
    return SplitEndpoint(
        SharedHalf(half),
        cut_codec(codec, uplink_bits=3, downlink_bits=3),
        states=DeviceStates("relay"),
        config=config,
    )


def run(
    endpoint: SplitEndpoint, turns: int, steps: int, address: str | None = None
) -> nn.Module:
    """Devices in turn train one device half, with the optimizer's state relayed."""
    device_half = seeded(DeviceHalf)
    for turn in range(turns):
        optimizer = ADAM(device_half.parameters())
        message = ticket_message(
            endpoint, device=str(turn % 3), **({"address": address} if address else {})
        )
        with connect(message, optimizer=optimizer) as session:
            for x, y in batches(steps, seed=turn):
                optimizer.zero_grad()
                session.loss(device_half(x), y).backward()
                optimizer.step()
    return device_half


@pytest.mark.parametrize(
    ("cuts", "turns"), [(100, 4), pytest.param(1000, 40, marks=pytest.mark.extended)]
)
def test_cuts_leave_no_trace(cuts, turns):
    with make_endpoint("splitfc") as endpoint:
        undisturbed = (
            weights(run(endpoint, turns, steps=40)),
            weights(endpoint.halves.half.model),
        )
        digest = endpoint.ledger.digest()
    with (
        make_endpoint("splitfc") as endpoint,
        CuttingProxy(endpoint.address, cuts, most_bytes=3000) as proxy,
    ):
        disturbed = (
            weights(run(endpoint, turns, 40, proxy.address)),
            weights(endpoint.halves.half.model),
        )
        traffic = endpoint.ledger.total("train")
        assert proxy.cuts_left <= 0
    assert same(undisturbed[0], disturbed[0])
    assert same(undisturbed[1], disturbed[1])
    assert endpoint.ledger.digest() == digest
    assert endpoint.halves.half.steps == traffic.steps == 40 * turns
    # the others were cut before they were sessions
    assert cuts // 10 < traffic.reconnects <= cuts
    assert 0 < traffic.uplink_bytes["resent"] < traffic.uplink_bytes["features"]


class Raw:
    """A device's stream, frame by frame."""

    def __init__(
        self, endpoint: SplitEndpoint, ticket: Ticket, nonce: bytes = bytes(16)
    ) -> None:
        self.channel = grpc.insecure_channel(
            endpoint.address, options=[("grpc.use_local_subchannel_pool", 1)]
        )
        call = self.channel.stream_stream(
            SESSION_METHOD, pb.DeviceFrame.SerializeToString, pb.ServerFrame.FromString
        )
        self._frames: queue.SimpleQueue[pb.DeviceFrame | None] = queue.SimpleQueue()
        self._replies = call(
            iter(self._frames.get, None), metadata=((TOKEN_KEY, ticket.token),)
        )
        self.opened = self.ask(
            pb.DeviceFrame(open=pb.Open(protocol=PROTOCOLS[-1], nonce=nonce))
        )

    def ask(self, frame: pb.DeviceFrame) -> pb.ServerFrame:
        self._frames.put(frame)
        return next(self._replies)

    def drop(self) -> None:
        self._frames.put(None)
        self.channel.close()


def step_frame(number: int, seed: int = 0) -> pb.DeviceFrame:
    x, y = batches(1, seed=seed)[0]
    array, _ = cut_codec("float32").encode_features(seeded(DeviceHalf)(x))
    matrix = pb.Matrix(stype=array.stype, shape=array.shape, data=array.data)
    return pb.DeviceFrame(
        number=number, step=pb.Step(features=matrix, labels=pack_labels(y))
    )


def test_a_frame_that_comes_again_is_answered_again_and_not_applied():
    with make_endpoint() as endpoint:
        ticket = endpoint.issue("train", "0", 1)
        first = Raw(endpoint, ticket)
        answer = first.ask(step_frame(1))
        again = first.ask(step_frame(1, seed=7))
        first.drop()
        second = Raw(endpoint, ticket)
        assert second.ask(step_frame(1)) == again == answer
        assert endpoint.halves.half.steps == 1
        second.ask(step_frame(2))
        assert endpoint.halves.half.steps == 2
        assert second.ask(step_frame(1)).refused.reason == pb.PROTOCOL
        second.drop()


def test_close_is_answered_again_after_the_session():
    with make_endpoint() as endpoint:
        ticket = endpoint.issue("train", "0", 1)
        for _ in range(2):
            device = Raw(endpoint, ticket)
            assert (
                device.ask(pb.DeviceFrame(number=1, close=pb.Close())).WhichOneof(
                    "kind"
                )
                == "closed"
            )
            device.drop()
        assert endpoint.ledger.of(1, "train").sessions == 1


@pytest.mark.parametrize("told", [float("nan"), float("inf"), -1.0, 0.0, 1e300])
def test_times_that_cannot_be_are_not_entered(told: float) -> None:
    with make_endpoint() as endpoint:
        for server_round, seconds in ((1, told), (2, 1000.0)):
            device = Raw(endpoint, endpoint.issue("train", "0", server_round))
            device.ask(step_frame(1))
            device.ask(
                pb.DeviceFrame(
                    number=2,
                    close=pb.Close(codec_seconds=seconds, waited_seconds=seconds),
                )
            )
            device.drop()
        disbelieved, believed = (
            endpoint.ledger.of(1, "train"),
            endpoint.ledger.of(2, "train"),
        )
    assert disbelieved.device_codec_seconds == disbelieved.link_seconds == 0
    # less the server's own time
    assert believed.device_codec_seconds == 1000 > believed.link_seconds > 0


def test_nothing_is_trained_after_close_or_after_the_reply():
    with make_endpoint() as endpoint:
        closed, replied = (
            endpoint.issue("train", "0", 1),
            endpoint.issue("train", "1", 1),
        )
        device = Raw(endpoint, closed)
        device.ask(pb.DeviceFrame(number=1, close=pb.Close()))
        device.drop()
        assert Raw(endpoint, closed).ask(step_frame(2)).refused.reason == pb.PROTOCOL
        device = Raw(endpoint, replied)
        device.ask(step_frame(1))
        endpoint.replied(replied.token)
        assert device.ask(step_frame(2)).refused.reason == pb.EXPIRED
        assert endpoint.halves.half.steps == 1


def test_a_token_holds_one_silent_connection_at_most():
    with make_endpoint(max_sessions=1) as endpoint:
        ticket = endpoint.issue("train", "0", 1)
        held = queue.SimpleQueue()
        with grpc.insecure_channel(endpoint.address) as channel:
            call = channel.stream_stream(
                SESSION_METHOD,
                pb.DeviceFrame.SerializeToString,
                pb.ServerFrame.FromString,
            )
            for _ in range(50):  # more than there are threads
                call(iter(held.get, None), metadata=((TOKEN_KEY, ticket.token),))
            device = Raw(endpoint, ticket)
            assert device.ask(step_frame(1)).stepped.loss > 0
            device.drop()
            for _ in range(50):
                held.put(None)


def test_what_was_refused_stays_refused():
    with make_endpoint() as endpoint:
        ticket = endpoint.issue("train", "0", 1)
        device = Raw(endpoint, ticket)
        refusal = device.ask(pb.DeviceFrame(number=1, step=pb.Step())).refused
        assert refusal.reason == pb.FEATURES
        assert Raw(endpoint, ticket).opened.refused == refusal


def test_another_process_cannot_take_a_session_over():
    with make_endpoint() as endpoint:
        ticket = endpoint.issue("train", "0", 1)
        device = Raw(endpoint, ticket)
        assert Raw(endpoint, ticket, nonce=b"x" * 16).opened.refused.reason == pb.TOKEN
        assert device.ask(step_frame(1)).stepped.loss > 0
        device.drop()


def test_the_old_connection_ends_when_the_session_moves_on():
    with make_endpoint() as endpoint:
        ticket = endpoint.issue("train", "0", 1)
        old, new = Raw(endpoint, ticket), Raw(endpoint, ticket)
        assert new.ask(step_frame(1)).WhichOneof("kind") == "stepped"
        with pytest.raises(grpc.RpcError):
            old.ask(step_frame(2))
        assert endpoint.halves.half.steps == 1
        new.drop()


def test_a_session_that_does_not_come_back_is_given_up():
    with make_endpoint(reconnect_timeout_s=0.1) as endpoint:
        ticket = endpoint.issue("train", "0", 1)
        device = Raw(endpoint, ticket)
        device.ask(step_frame(1))
        assert endpoint.sweep() == {}
        device.drop()
        given_up = wait_until(endpoint.sweep)
        assert given_up == {ticket.token: "disconnected for 0.1 s"}
        assert Raw(endpoint, ticket).opened.refused.reason == pb.CANCELLED
        assert endpoint.ledger.of(1, "train").steps == 1


def test_a_device_that_does_not_reply_after_its_session_is_given_up():
    with make_endpoint(reply_timeout_s=0.1) as endpoint:
        ticket = endpoint.issue("train", "0", 1)
        device = Raw(endpoint, ticket)
        device.ask(pb.DeviceFrame(number=1, close=pb.Close()))
        assert wait_until(endpoint.sweep) == {
            ticket.token: "no reply within 0.1 s after its session"
        }
        device.drop()


def test_a_server_that_is_gone_for_good_is_named():
    x, y = batches(1)[0]
    with make_endpoint(reconnect_timeout_s=0.5) as endpoint:
        message = ticket_message(endpoint)
        with (
            pytest.raises((EndpointUnreachable, SessionCancelled)),
            connect(message) as session,
        ):
            session.loss(seeded(DeviceHalf)(x), y)
            endpoint.__exit__(None, None, None)
            session.loss(seeded(DeviceHalf)(x), y)


def wait_until(condition, timeout_s: float = 10.0):
    deadline = time.monotonic() + timeout_s
    while not (value := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return value
