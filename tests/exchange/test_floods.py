"""Peers that open more than they use keep no thread and no descriptor from the others."""

import contextlib
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import pytest
import torch
from grpc._cython import cygrpc
from torch import Tensor, nn

from flwr_splitfc import EndpointConfig, Limits, connect, cut_codec
from flwr_splitfc.exchange import SplitEndpoint
from flwr_splitfc.exchange.device.session_call import _options as _device_options
from flwr_splitfc.exchange.protocol.ticket import Ticket
from flwr_splitfc.exchange.server.endpoint.stream_server import _options
from tests.exchange.http2 import connection, greeting, open_stream
from tests.exchange.raw_device import NONCE, RawDevice, drain, open_frame, session_call
from tests.exchange.server_halves import shared_half
from tests.exchange.step_frames import label_bytes, step_frame
from tests.halves import DeviceHalf, ServerHalf, batches, seeded
from tests.local_grid import ticket_message

ROOT = Path(__file__).parents[2]
FLOOD = 300


def make_endpoint(model: nn.Module | None = None, **limits) -> SplitEndpoint:
    return SplitEndpoint(
        shared_half(model),
        cut_codec("float32"),
        config=EndpointConfig(limits=Limits(**limits)),
    )


def train(endpoint: SplitEndpoint, steps: int = 3) -> None:
    """One turn of an honest device."""
    with connect(ticket_message(endpoint, device="honest")) as session:
        for x, y in batches(steps):
            session.loss(seeded(DeviceHalf)(x), y)
    assert endpoint.ledger.devices("train")["honest"].steps == steps


def test_refusals_that_are_never_taken_hold_no_thread():
    """One connection, 300 streams, and no byte of an answer is let through."""
    with make_endpoint() as endpoint, connection(endpoint) as stranger:
        stranger.sendall(greeting(window=0))
        for number in range(FLOOD):
            with contextlib.suppress(OSError):
                stranger.sendall(open_stream(number, "guess"))
        train(endpoint)


class Waiting(nn.Module):
    """A server half that takes its time in its first step."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = seeded(ServerHalf)
        self.begun = threading.Event()
        self.goes_on = threading.Event()

    def forward(self, x: Tensor) -> Tensor:
        self.begun.set()
        self.goes_on.wait()
        return self.inner(x)


@pytest.mark.parametrize("says_hello", [False, True])
def test_many_streams_with_the_token_of_a_step_that_computes(says_hello):
    model = Waiting()
    with (
        make_endpoint(model, max_sessions=8) as endpoint,
        contextlib.ExitStack() as at_end,
    ):
        at_end.callback(model.goes_on.set)
        ticket = Ticket.from_message(ticket_message(endpoint))
        device = RawDevice(endpoint, ticket)
        at_end.callback(device.drop)
        step = step_frame(torch.rand(8, 4, 4, 4), label_bytes(8))
        step.number = 1
        device.send(step)
        model.begun.wait()

        never = threading.Event()
        at_end.callback(never.set)

        def frames():
            if says_hello:
                yield open_frame(NONCE)
            never.wait()

        for _ in range(60):
            options = [("grpc.use_local_subchannel_pool", 1)]
            channel = grpc.insecure_channel(endpoint.address, options=options)
            at_end.callback(channel.close)
            replies = session_call(channel, ticket.token, frames())
            # reading begins the call
            threading.Thread(target=lambda replies=replies: drain(replies)).start()
        time.sleep(1.0)

        # the half is busy, but there is room for a session
        with connect(ticket_message(endpoint, device="honest")) as session:
            model.goes_on.set()
            x, y = batches(1)[0]
            session.loss(seeded(DeviceHalf)(x), y)


@pytest.mark.parametrize(
    ("host", "verbosity", "is_named"),
    [
        ("0.0.0.0", "error", True),
        ("0.0.0.0", "NONE", False),
        ("127.0.0.1", "error", False),
    ],
)
def test_who_listens_to_strangers_is_told_what_silences_grpc(
    host, verbosity, is_named, monkeypatch, caplog
):
    monkeypatch.setenv("GRPC_VERBOSITY", verbosity)
    caplog.set_level("INFO", "flwr")
    config = EndpointConfig(host=host, address="127.0.0.1")
    with SplitEndpoint(shared_half(), cut_codec("float32"), config=config):
        pass
    assert ("GRPC_VERBOSITY=NONE" in caplog.text) is is_named


def test_idle_connections_are_closed():
    with (
        make_endpoint(connection_idle_timeout_s=1.0) as endpoint,
        connection(endpoint) as stranger,
    ):
        stranger.sendall(greeting())
        stranger.settimeout(60)
        # until the server hangs up
        while stranger.recv(4096):
            pass


def test_idle_connections_leave_descriptors_for_devices_and_files(tmp_path):
    """300 of them, and 256 descriptors."""
    command = [sys.executable, "-m", "tests.exchange.few_descriptors", str(tmp_path)]
    # where it fails, its server may never answer
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "written while the flood was on" in done.stdout
    assert "trained after it" in done.stdout


def test_options_are_those_of_grpc():
    """An option that gRPC does not know is left out without a word."""
    library = Path(cygrpc.__file__).read_bytes()
    server = [name for name, _ in _options(Limits())]
    device = [name for name, _ in _device_options(30.0)]
    for name in (*server, *device):
        assert name.encode() in library
