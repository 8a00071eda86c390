"""A connection that is dead is noticed, and one that is only slow stands in the end."""

import socket
import time
from contextlib import suppress
from threading import Thread

import pytest

from flwr_splitfc import connect
from flwr_splitfc.exchange.device import session_call, stream
from flwr_splitfc.exchange.server.endpoint import stream_server
from tests.cutting_proxy import CuttingProxy
from tests.exchange.test_floods import Waiting, make_endpoint
from tests.halves import DeviceHalf, batches, seeded
from tests.local_grid import ticket_message


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    """Pings are sent often, and their answers are not waited for long."""
    for module in (session_call, stream_server):
        monkeypatch.setattr(module, "KEEPALIVE_MS", 100)
    monkeypatch.setattr(stream, "_PING_TIMEOUT_S", 0.2)


class ForgetfulProxy:
    """Forwards to `target` until it forgets a connection: only the server is told."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._servers: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> "ForgetfulProxy":
        return self

    def __exit__(self, *error: object) -> None:
        self._listener.close()
        self.forget()

    def forget(self) -> None:
        """Forget the connections that are there."""
        for server in self._servers:
            with suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
        self._servers.clear()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                device, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                self._servers.append(server)
                for ends in ((device, server), (server, device)):
                    Thread(target=_forward, args=ends, daemon=True).start()


def _forward(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            # what comes for a side that is gone vanishes
            with suppress(OSError):
                sink.sendall(data)


def test_a_break_that_only_the_server_sees_costs_no_turn():
    """The device waits for an answer, for several pings already."""
    model = Waiting()
    x, y = batches(1)[0]
    with (
        make_endpoint(model, reconnect_timeout_s=20.0) as endpoint,
        ForgetfulProxy(endpoint.address) as proxy,
    ):

        def breaks():
            model.begun.wait()
            # gRPC sends a ping in a second; the third one is to come
            time.sleep(2.5)
            proxy.forget()
            model.goes_on.set()

        with connect(ticket_message(endpoint, address=proxy.address)) as session:
            Thread(target=breaks).start()
            session.loss(seeded(DeviceHalf)(x), y)
        assert endpoint.halves.half.steps == 1
        assert endpoint.ledger.total("train").reconnects >= 1


def test_a_slow_line_is_given_more_time_until_a_frame_is_through():
    x, y = batches(1)[0]
    features = seeded(DeviceHalf)(x)
    with (
        make_endpoint(reconnect_timeout_s=20.0) as endpoint,
        CuttingProxy(endpoint.address, 0, 1, bytes_per_second=6000) as proxy,
        connect(ticket_message(endpoint, address=proxy.address)) as session,
    ):
        session.loss(features, y)
        assert endpoint.halves.half.steps == 1
