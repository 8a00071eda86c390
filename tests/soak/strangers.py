"""Peers without a token: they know where the endpoint listens, and nothing else."""

import contextlib
import os
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass

import grpc

from flwr_splitfc.exchange.protocol import split_pb2 as pb
from tests.exchange.http2 import connection, greeting, open_stream
from tests.exchange.raw_device import open_frame, session_call
from tests.soak.devices import Devices

HELD_S = 5.0


@dataclass(frozen=True)
class Stranger:
    """A peer: where the endpoint is, how it decides, and when it has to go."""

    address: str
    draw: random.Random
    over: threading.Event

    def hold(self) -> None:
        self.over.wait(HELD_S)


def streams_that_take_nothing(peer: Stranger) -> None:
    with connection(peer) as socket:
        socket.sendall(greeting(window=0))
        for number in range(300):
            socket.sendall(open_stream(number, "guess"))
        peer.hold()


def idle_connections(peer: Stranger) -> None:
    with contextlib.ExitStack() as held:
        for _ in range(100):
            socket = held.enter_context(connection(peer))
            if peer.draw.random() < 0.5:
                socket.sendall(greeting())
        peer.hold()


def half_a_greeting(peer: Stranger) -> None:
    with contextlib.ExitStack() as held:
        for _ in range(50):
            held.enter_context(connection(peer)).sendall(b"PRI * HT")
        peer.hold()


def noise(peer: Stranger) -> None:
    hellos = [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01",
        greeting() + os.urandom(200),
        os.urandom(1000),
    ]
    for _ in range(20):
        with connection(peer) as socket:
            socket.sendall(peer.draw.choice(hellos))


def guesses(peer: Stranger) -> None:
    tokens = ["", "guess", "." * 100, "x" * 4000, "0" * 8 + ".secret"]
    with grpc.insecure_channel(peer.address) as channel:
        for _ in range(30):
            frames = iter([open_frame()])
            answer = next(session_call(channel, peer.draw.choice(tokens), frames))
            assert answer.refused.reason == pb.TOKEN


ATTACKS: list[Callable[[Stranger], None]] = [
    streams_that_take_nothing,
    idle_connections,
    half_a_greeting,
    noise,
    guesses,
]


class Strangers:
    """Two of them at any time, for as long as the block lasts."""

    def __init__(self, devices: Devices, seed: int) -> None:
        self._devices = devices
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._attack, args=(random.Random(seed + number),))
            for number in range(2)
        ]

    def __enter__(self) -> "Strangers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _attack(self, draw: random.Random) -> None:
        while not self._over.wait(draw.uniform(0.0, 2.0)):
            address = self._devices.address
            if address:
                # the endpoint hangs up, or is there no more
                with contextlib.suppress(OSError, grpc.RpcError, StopIteration):
                    draw.choice(ATTACKS)(Stranger(address, draw, self._over))
