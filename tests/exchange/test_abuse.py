"""What strangers on the network do to the endpoint leaves a running session undisturbed."""

import contextlib
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import grpc
import pytest
import torch
from torch import nn

from flwr_splitfc import EndpointConfig, Limits, connect, cut_codec
from flwr_splitfc.exchange import (
    HalfTrainer,
    LimitExceeded,
    SharedHalf,
    SplitEndpoint,
    TokenRefused,
)
from flwr_splitfc.exchange.device.channel import open_channel
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.rpc import SESSION_METHOD, TOKEN_KEY
from flwr_splitfc.exchange.protocol.ticket import PROTOCOLS, Ticket
from tests.halves import DeviceHalf, ServerHalf, batches, same, seeded, weights
from tests.local_grid import ticket_message

STEPS = 60


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
    """One session of `STEPS` steps; `meanwhile` is called with its message after every step."""
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
    ticket = endpoint.issue("train", "stranger", 1)
    options = [
        ("grpc.max_send_message_length", -1),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    with open_channel(
        endpoint.address, ticket.tls, ticket.authority.encode(), options
    ) as channel:
        call = channel.stream_stream(
            SESSION_METHOD, pb.DeviceFrame.SerializeToString, pb.ServerFrame.FromString
        )
        return list(call(iter(frames), metadata=((TOKEN_KEY, token),) if token else ()))


def open_frame(nonce: bytes = b"stranger" * 2) -> pb.DeviceFrame:
    return pb.DeviceFrame(open=pb.Open(protocol=PROTOCOLS[-1], nonce=nonce))


def scan(endpoint: SplitEndpoint, message) -> None:
    """One round of what a stranger may try."""
    stolen = Ticket.from_message(message).token
    for token in (
        "",
        "guess",
        stolen[:-1],
        stolen.partition(".")[0],
        "." + stolen,
        "x" * 4000,
    ):
        assert raw(endpoint, token, open_frame())[-1].refused.reason == pb.TOKEN
    # another nonce
    assert raw(endpoint, stolen, open_frame())[-1].refused.reason == pb.TOKEN
    host, _, port = endpoint.address.rpartition(":")
    for hello in (
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + os.urandom(200),
        b"\x16\x03\x01",
    ):
        with (
            contextlib.suppress(OSError),
            socket.create_connection((host, int(port)), timeout=5) as stranger,
        ):
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
        host, _, port = endpoint.address.rpartition(":")

        def slow_loris(message) -> None:
            for _ in range(4):
                stranger = open_sockets.enter_context(
                    socket.create_connection((host, int(port)), timeout=5)
                )
                stranger.sendall(b"PRI * HT")

        assert same(turn(endpoint, slow_loris), quiet)


def test_two_hundred_streams_at_once_with_wrong_tokens():
    with make_endpoint(max_sessions=4) as endpoint:
        quiet = turn(endpoint)
    with make_endpoint(max_sessions=4) as endpoint, ThreadPoolExecutor(20) as strangers:
        attempts = []

        def crowd(message) -> None:
            if not attempts:
                attempts.extend(
                    strangers.submit(raw, endpoint, "guess", open_frame())
                    for _ in range(200)
                )

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


def test_no_more_sessions_at_once_than_the_limit():
    with make_endpoint(max_sessions=1) as endpoint:
        x, y = batches(1)[0]
        with connect(ticket_message(endpoint)) as session:
            with (
                pytest.raises(LimitExceeded, match="1 sessions are open"),
                connect(ticket_message(endpoint)),
            ):
                pass
            session.loss(seeded(DeviceHalf)(x), y)
        with connect(ticket_message(endpoint)) as session:
            session.loss(seeded(DeviceHalf)(x), y)


def test_tokens_are_not_logged(caplog):
    caplog.set_level("DEBUG", "flwr")
    with make_endpoint() as endpoint:
        messages = [ticket_message(endpoint) for _ in range(3)]
        with connect(messages[0]), pytest.raises(TokenRefused), connect(messages[0]):
            pass
        endpoint.revoke([Ticket.from_message(message).token for message in messages])
    assert "split session opened" in caplog.text
    assert "split session refused" in caplog.text
    for message in messages:
        assert Ticket.from_message(message).token.partition(".")[2] not in caplog.text


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
