"""A link with a rate and a delay, as a TCP proxy in a process of its own.

Bytes leave one after another at the link's rate, and arrive half a round trip later.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection

_CHUNK_BYTES = 16384
_MOST_CHUNKS = 256  # in flight; the sender waits then, as TCP's window makes it


@dataclass(frozen=True)
class DelayedLink:
    """A device's link.

    Parameters
    ----------
    up_mbit, down_mbit : float
        Mbit/s.
    rtt_ms : float
        A round trip.
    """

    up_mbit: float
    down_mbit: float
    rtt_ms: float

    @classmethod
    def parsed(cls, text: str) -> DelayedLink:
        """Return the link of ``up,down,rtt``, such as ``10,50,40``."""
        return cls(*map(float, text.split(",")))

    @contextmanager
    def to(self, address: str) -> Iterator[str]:
        """Yield the address at which `address` is reached over this link."""
        spawn = multiprocessing.get_context("spawn")
        here, there = spawn.Pipe()
        process = spawn.Process(target=_serve, args=(self, address, there))
        process.start()
        try:
            yield f"127.0.0.1:{here.recv()}"
        finally:
            process.terminate()
            process.join()


def _serve(link: DelayedLink, address: str, ready: Connection) -> None:
    asyncio.run(_forward_all(link, address, ready))


async def _forward_all(link: DelayedLink, address: str, ready: Connection) -> None:
    host, _, port = address.rpartition(":")

    async def connected(
        device_reader: asyncio.StreamReader, device_writer: asyncio.StreamWriter
    ) -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        await asyncio.gather(
            _forward(device_reader, writer, link.up_mbit, link.rtt_ms / 2),
            _forward(reader, device_writer, link.down_mbit, link.rtt_ms / 2),
        )

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    ready.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()


async def _forward(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    mbit: float,
    delay_ms: float,
) -> None:
    """Forward one direction of a connection."""
    loop = asyncio.get_running_loop()
    in_flight: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_MOST_CHUNKS)

    async def send() -> None:
        free_at = 0.0
        while chunk := await reader.read(_CHUNK_BYTES):
            free_at = max(free_at, loop.time()) + 8e-6 * len(chunk) / mbit
            await in_flight.put((free_at + delay_ms / 1e3, chunk))
        await in_flight.put((0.0, b""))

    sending = asyncio.ensure_future(send())
    while True:
        arrives_at, chunk = await in_flight.get()
        if not chunk:
            break
        await asyncio.sleep(max(arrives_at - loop.time(), 0.0))
        writer.write(chunk)
        await writer.drain()
    writer.close()
    await sending
