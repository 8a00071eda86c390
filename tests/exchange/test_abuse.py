"""What strangers on the network do to the endpoint leaves a running session undisturbed."""

import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace

import grpc
import pytest
import torch
from torch import nn

from flwr_splitfc import EndpointConfig, Limits, connect, cut_codec
from flwr_splitfc.exchange import HalfTrainer, SharedHalf, SplitEndpoint
from flwr_splitfc.exchange.device.channel import open_channel
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.ticket import Ticket
from flwr_splitfc.exchange.server.endpoint import line_pace
from tests.exchange.http2 import connection
from tests.exchange.raw_device import NONCE, RawDevice, open_frame, session_call
from tests.halves import DeviceHalf, ServerHalf, batches, same, seeded, weights
from tests.local_grid import ticket_message

STEPS = 60
CONNECTIONS_A_STEP = 4
STREAMS_AT_ONCE = 200


def make_endpoint(tls: bool = False, **limits) -> SplitEndpoint:
    half = HalfTrainer(
        seeded(ServerHalf),
        nn.CrossEntropyLoss(),
        partial(torch.optim.SGD, lr=0.1),
        device="cpu",
    )
    return SplitEndpoint(
        SharedHalf(half),
        cut_codec("float32"),
        config=EndpointConfig(tls=tls, limits=Limits(**limits)),
    )


def turn(endpoint: SplitEndpoint, meanwhile=lambda message: None) -> dict:
    """Train for one session of `STEPS` steps, and return the server half's weights.

    After every step `meanwhile` is called with the session's message.
    """
    message = ticket_message(endpoint)
    with connect(message) as session:
        for x, y in batches(STEPS):
            session.loss(seeded(DeviceHalf)(x), y)
            meanwhile(message)
        assert session.metrics()["reconnects"] == 0
    return weights(endpoint.halves.half.model)


def raw(
    endpoint: SplitEndpoint, token: str, *frames: pb.DeviceFrame
) -> list[pb.ServerFrame]:
    """Send frames in a stream of their own, and return all answers."""
    ticket = endpoint.issue("train", "stranger", 1)
    options = [
        ("grpc.max_send_message_length", -1),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    with open_channel(
        endpoint.address, ticket.tls, ticket.authority.encode(), options
    ) as channel:
        return list(session_call(channel, token, iter(frames)))


def scan(endpoint: SplitEndpoint, message) -> None:
    """Do once what a stranger may try."""
    stolen = Ticket.from_message(message).token
    session_id = stolen.partition(".")[0]
    guesses = ("", "guess", stolen[:-1], session_id, "." + stolen, "x" * 4000)
    # the stolen token is the right one, but comes with another nonce
    for token in (*guesses, stolen):
        assert raw(endpoint, token, open_frame())[-1].refused.reason == pb.TOKEN
    nothing = b""
    http_1 = b"GET / HTTP/1.1\r\n\r\n"
    http_2_and_noise = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + os.urandom(200)
    tls_record = b"\x16\x03\x01"
    for hello in (nothing, http_1, http_2_and_noise, tls_record):
        with contextlib.suppress(OSError), connection(endpoint) as stranger:
            stranger.sendall(hello)


@pytest.mark.parametrize("tls", [False, True])
def test_scans_leave_a_running_session_undisturbed(tls):
    with make_endpoint(tls) as endpoint:
        quiet = turn(endpoint)
    with make_endpoint(tls) as endpoint:
        assert same(turn(endpoint, partial(scan, endpoint)), quiet)
        assert endpoint.ledger.of(1, "train").steps == STEPS


def test_two_hundred_connections_that_say_nothing():
    with make_endpoint() as endpoint:
        quiet = turn(endpoint)
    with make_endpoint() as endpoint, contextlib.ExitStack() as open_sockets:

        def slow_loris(message) -> None:
            for _ in range(CONNECTIONS_A_STEP):
                stranger = open_sockets.enter_context(connection(endpoint))
                stranger.sendall(b"PRI * HT")

        assert same(turn(endpoint, slow_loris), quiet)


def test_a_stranger_is_told_nothing_of_a_session_that_is_over():
    with make_endpoint() as endpoint:
        token = endpoint.issue("train", "7", 1).token
        endpoint.revoke([token])
        session_id = token.partition(".")[0]
        for guess in (session_id, f"{session_id}.guess", token[:-1]):
            assert raw(endpoint, guess, open_frame())[-1].refused.reason == pb.TOKEN
        assert raw(endpoint, token, open_frame())[-1].refused.reason == pb.EXPIRED


@pytest.mark.parametrize("how", ["revoked", "refused"])
def test_refused_streams_of_a_session_that_is_over_leave_nothing(how):
    """gRPC counts a stream as open as long as anything of it is kept."""
    with make_endpoint() as endpoint:
        ticket = endpoint.issue("train", "7", 1)
        reason = pb.EXPIRED
        if how == "revoked":
            endpoint.revoke([ticket.token])
        else:
            device = RawDevice(endpoint, ticket)
            device.ask(pb.DeviceFrame(number=77, close=pb.Close()))
            reason = pb.PROTOCOL
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(endpoint.address, options=options) as channel:
            for _ in range(40):
                frames = iter([open_frame(NONCE)])
                (reply,) = session_call(channel, ticket.token, frames)
                assert reply.refused.reason == reason


def test_two_hundred_streams_at_once_with_wrong_tokens():
    with make_endpoint(max_sessions=4) as endpoint:
        quiet = turn(endpoint)
    with make_endpoint(max_sessions=4) as endpoint, ThreadPoolExecutor(20) as strangers:
        attempts = []

        def crowd(message) -> None:
            if not attempts:
                for _ in range(STREAMS_AT_ONCE):
                    attempt = strangers.submit(raw, endpoint, "guess", open_frame())
                    attempts.append(attempt)

        assert same(turn(endpoint, crowd), quiet)
        for attempt in attempts:
            with contextlib.suppress(grpc.RpcError):  # too many at once
                assert attempt.result()[-1].refused.reason == pb.TOKEN


def test_a_frame_over_the_limit_ends_its_stream_alone():
    with make_endpoint(max_frame_bytes=100_000) as endpoint:
        quiet = turn(endpoint)
    with make_endpoint(max_frame_bytes=100_000) as endpoint:
        big = pb.DeviceFrame(number=1, step=pb.Step(labels=bytes(200_000)))

        def too_big(message) -> None:
            if endpoint.halves.half.steps % 20:
                return
            token = endpoint.issue("train", "stranger", 1).token
            with pytest.raises(grpc.RpcError, match="RESOURCE_EXHAUSTED"):
                raw(endpoint, token, open_frame(), big)

        assert same(turn(endpoint, too_big), quiet)


def test_tokens_are_not_logged(caplog):
    caplog.set_level("DEBUG", "flwr")
    x, y = batches(1)[0]
    with make_endpoint() as endpoint:
        messages = [ticket_message(endpoint) for _ in range(3)]
        with connect(messages[0]) as session:
            session.loss(seeded(DeviceHalf)(x), y)
            stranger = RawDevice(endpoint, session.ticket)
            assert stranger.opened.refused.reason == pb.TOKEN
            stranger.drop()
        endpoint.revoke([Ticket.from_message(message).token for message in messages])
    assert "split session opened" in caplog.text
    assert "split session refused" in caplog.text
    for message in messages:
        assert Ticket.from_message(message).token.partition(".")[2] not in caplog.text


def test_strangers_write_few_lines_into_the_log(caplog, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(line_pace, "time", clock)

    def refused(what: str) -> list[str]:
        return [line for line in caplog.messages if f"refused: {what}" in line]

    with make_endpoint() as endpoint, ThreadPoolExecutor(8) as strangers:
        for _ in range(2):
            attempts = [
                strangers.submit(raw, endpoint, "guess", open_frame())
                for _ in range(25)
            ]
            assert all(attempt.result()[-1].refused for attempt in attempts)
            clock.now += 5.0
        assert len(refused("peer=")) == 10
        assert not refused("left_out=")
        # who has a ticket is another matter
        device = RawDevice(endpoint, endpoint.issue("train", "7", 1))
        device.ask(pb.DeviceFrame(number=77, close=pb.Close()))
        assert [line for line in refused("id=") if "device=7" in line]
        raw(endpoint, "guess", open_frame())
        assert refused("left_out=") == ["split session refused: left_out=40"]
        assert len(refused("peer=")) == 11


def test_a_device_that_comes_again_and_again_writes_few_lines(caplog, monkeypatch):
    caplog.set_level("INFO", "flwr")
    clock = SimpleNamespace(now=0.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(line_pace, "time", clock)

    def lines(of: str) -> list[str]:
        return [line for line in caplog.messages if line.startswith(of)]

    with make_endpoint() as endpoint:
        ticket, other = (endpoint.issue("train", name, 1) for name in "01")
        # the first one opens the session
        for _ in range(31):
            raw(endpoint, ticket.token, open_frame(NONCE))
        assert len(lines("split session resumed")) == 10
        wrong = pb.DeviceFrame(number=77, close=pb.Close())
        for _ in range(30):
            raw(endpoint, ticket.token, open_frame(NONCE), wrong)
        assert len(lines("split session refused")) == 10
        # others have lines of their own
        for _ in range(2):
            raw(endpoint, other.token, open_frame(NONCE))
        assert len(lines("split session resumed")) == 11
        clock.now += 10.0
        raw(endpoint, ticket.token, open_frame(NONCE))
        assert lines("split session refused")[10].endswith("left_out=20")


def test_steps_from_many_devices_at_the_limit_of_sessions():
    with make_endpoint(max_sessions=8) as endpoint:

        def device(name: int) -> None:
            with connect(ticket_message(endpoint, device=str(name))) as session:
                for x, y in batches(10, seed=name):
                    session.loss(seeded(DeviceHalf)(x), y)

        threads = [threading.Thread(target=device, args=(name,)) for name in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert endpoint.halves.half.steps == 80
