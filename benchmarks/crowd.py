"""A crowd of devices that come at once to a server with fewer slots.

    python benchmarks/crowd.py --sessions 500 --slots 64
    python benchmarks/crowd.py --sessions 1,8,64,500 --slots 256 --merge-steps 1,16

Each device opens a session, sends the same coded step again and again, and closes. All
are threads of one process, and the server is another. `benchmarks/README.md` says what
the columns mean.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import resource
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from sessions import coded_step, trainer
from written import write_rows

from flwr_splitfc import EndpointConfig, Limits, cut_codec
from flwr_splitfc.exchange import SharedHalf, SplitEndpoint
from flwr_splitfc.exchange.device.stream import Stream
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.ticket import Ticket

_CLOSE = pb.Close()
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class CrowdRow:
    """A crowd that was served.

    Parameters
    ----------
    sessions, slots : int
    merge_steps : int
        The most mini-batches that made one step.
    lost : int
        Devices of which a step was not answered.
    steps_per_second : float
        Of all, from the first device's start to the last one's end.
    longest_wait_s, median_wait_s : float
        From a device's start to its first answer.
    server_mb, grown_mb : float
        The server's memory at its most, and what of it came with the crowd.
    threads : int
        Of the server at its most.
    """

    sessions: int
    slots: int
    merge_steps: int
    lost: int
    steps_per_second: float
    longest_wait_s: float
    median_wait_s: float
    server_mb: float
    grown_mb: float
    threads: int


@dataclass(frozen=True)
class _Served:
    """How long one device waited; `error` says why it was lost."""

    wait_s: float
    error: str = ""


def crowd(
    codec: str, sessions: int, slots: int, merge_steps: int, rows: int, steps: int
) -> CrowdRow:
    """Serve a crowd, in a server's process of its own: memory is that process's."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    server = spawn.Process(
        target=serve, args=(there, codec, sessions, slots, merge_steps)
    )
    server.start()
    tickets: list[Ticket] = here.recv()
    frame = coded_step(codec, rows)
    started = time.perf_counter()
    with ThreadPoolExecutor(sessions) as devices:
        served = list(devices.map(lambda ticket: turn(ticket, frame, steps), tickets))
    seconds = time.perf_counter() - started
    here.send("over")
    before_kb, most_kb, threads, trained = here.recv()
    server.join()
    waits = sorted(one.wait_s for one in served)
    lost = sum(bool(one.error) for one in served)
    if trained != (sessions - lost) * steps:
        raise SystemExit(f"{trained} steps were trained, of {sessions} x {steps}")
    return CrowdRow(
        sessions=sessions,
        slots=slots,
        merge_steps=merge_steps,
        lost=lost,
        steps_per_second=trained / seconds,
        longest_wait_s=waits[-1],
        median_wait_s=waits[len(waits) // 2],
        server_mb=most_kb / 1024,
        grown_mb=(most_kb - before_kb) / 1024,
        threads=threads,
    )


def turn(ticket: Ticket, frame_bytes: bytes, steps: int) -> _Served:
    """Take a device's turn: this is one thread of the devices' process."""
    stream = Stream(ticket)
    started = time.perf_counter()
    wait_s = 0.0
    try:
        for _ in range(steps):
            stream.ask(pb.DeviceFrame.FromString(frame_bytes))
            wait_s = wait_s or time.perf_counter() - started
        stream.ask(pb.DeviceFrame(close=_CLOSE))
        stream.finish()
    except Exception as error:  # whatever it is, the device is lost
        return _Served(wait_s, repr(error))
    finally:
        stream.close()
    return _Served(wait_s)


def serve(
    pipe: Connection, codec: str, sessions: int, slots: int, merge_steps: int
) -> None:
    """Serve until told that the crowd is gone; this is the server's process."""
    torch.set_num_threads(1)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    limits = Limits(max_sessions=slots, max_waiting=max(sessions, 1))
    config = EndpointConfig(limits=limits)
    half = trainer(merge_steps)
    with SplitEndpoint(SharedHalf(half), cut_codec(codec), config=config) as endpoint:
        tickets = [endpoint.issue("train", str(name), 1) for name in range(sessions)]
        before_kb = memory_kb()
        pipe.send(tickets)
        threads = 0
        while not pipe.poll(0.1):
            threads = max(threads, status("Threads"))
        most_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        pipe.send((before_kb, most_kb, threads, half.steps))


def memory_kb() -> int:
    return status("VmRSS")


def status(name: str) -> int:
    """Return a number of this process, as Linux says it."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise SystemExit(f"{_STATUS} has no {name}")


def counts(text: str) -> list[int]:
    return [int(count) for count in text.split(",")]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sessions", type=counts, default=[500], metavar="N,N,...")
    parser.add_argument("--slots", type=int, default=256, help="sessions at once")
    parser.add_argument(
        "--merge-steps",
        type=counts,
        default=[1],
        metavar="N,N,...",
        help="mini-batches that make one step",
    )
    parser.add_argument("--codec", default="splitfc")
    parser.add_argument("--rows", type=int, default=64, help="samples of a mini-batch")
    parser.add_argument("--steps", type=int, default=20, help="of a device")
    parser.add_argument("--json", type=Path, help="write the rows there, too")
    return parser.parse_args()


def table(rows: Sequence[CrowdRow]) -> str:
    """Return the rows below their headings."""
    heading = "sessions  slots  merged  lost  steps/s  longest wait s  median  "
    lines = [heading + "server MB  of the crowd  threads"]
    for row in rows:
        crowd_part = f"{row.sessions:>8} {row.slots:>6} {row.merge_steps:>7}"
        result = f"{row.lost:>5} {row.steps_per_second:>8.1f}"
        waits = f"{row.longest_wait_s:>15.1f} {row.median_wait_s:>7.1f}"
        memory = f"{row.server_mb:>10.0f} {row.grown_mb:>13.0f} {row.threads:>8}"
        lines.append(f"{crowd_part} {result} {waits} {memory}")
    return "\n".join(lines)


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    # a line for each device that waits, otherwise
    logging.getLogger("flwr").setLevel(logging.ERROR)
    rows = []
    for sessions, merge_steps in product(options.sessions, options.merge_steps):
        row = crowd(
            options.codec,
            sessions,
            options.slots,
            merge_steps,
            options.rows,
            options.steps,
        )
        rows.append(row)
    print(table(rows))
    if options.json:
        write_rows(options.json, rows)


if __name__ == "__main__":
    main()
