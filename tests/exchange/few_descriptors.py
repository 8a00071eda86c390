"""A server with 256 descriptors, and 300 connections: python -m tests.exchange.few_descriptors FOLDER."""

import contextlib
import multiprocessing
import resource
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from flwr_splitfc import EndpointConfig, Limits, cut_codec
from flwr_splitfc.exchange import Session, SplitEndpoint
from flwr_splitfc.exchange.device.stream import Stream
from flwr_splitfc.exchange.protocol.ticket import Ticket
from flwr_splitfc.strategy.checkpoint import load_checkpoint, save_checkpoint
from tests.exchange.http2 import connection, greeting
from tests.exchange.server_halves import shared_half
from tests.halves import DeviceHalf, batches, seeded

DESCRIPTORS = 256
FLOOD = 300


def serve(pipe: Connection, folder: Path) -> None:
    torch.set_num_threads(1)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, most))
    limits = Limits(connection_idle_timeout_s=3.0)
    endpoint = SplitEndpoint(
        shared_half(), cut_codec("float32"), config=EndpointConfig(limits=limits)
    )
    with endpoint:
        pipe.send((endpoint.address, endpoint.issue("train", "0", 1)))
        assert pipe.recv() == "flooded"
        save_checkpoint(folder, {"round": 1})
        assert load_checkpoint(folder)
        pipe.send("written")
        assert pipe.recv() == "trained"
        assert endpoint.ledger.of(1, "train").steps == 3


class Address:
    def __init__(self, address: str) -> None:
        self.address = address


def train(ticket: Ticket) -> None:
    with Session(ticket, Stream(ticket)) as session:
        for x, y in batches(3):
            session.loss(seeded(DeviceHalf)(x), y)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(
        target=serve, args=(theirs, folder), daemon=True
    )
    server.start()
    theirs.close()
    address, ticket = ours.recv()
    with contextlib.ExitStack() as flood:
        for _ in range(FLOOD):
            with contextlib.suppress(OSError):
                stranger = flood.enter_context(connection(Address(address)))
                stranger.sendall(greeting())
        ours.send("flooded")
        assert ours.recv() == "written"
        print("written while the flood was on", flush=True)
        train(ticket)
        print("trained after it", flush=True)
    ours.send("trained")
    server.join()
    assert server.exitcode == 0


if __name__ == "__main__":
    main(Path(sys.argv[1]))
