"""The soak itself: the server's process, the devices, the strangers, and what is checked."""

import contextlib
import multiprocessing
import os
import time
from multiprocessing.connection import Connection
from pathlib import Path

from tests.soak.devices import Devices
from tests.soak.legs import LEGS
from tests.soak.pipe_grid import Packed
from tests.soak.samples import MIB, Sample, Watch, growth, plot
from tests.soak.server import serve
from tests.soak.strangers import Strangers

LEAST_MINUTES = 10.0
"""A quarter of less has not every leg, of which some take more than others."""

MOST_GROWTH_BYTES = 24 * MIB
"""From the third quarter of the time to the last, between attacks.

A refused Close of 20 MB of empty tensors once stayed with 2.5 GiB, and a refused stream
with a thread of 8 MiB. An allocator that keeps its arenas moves by some MiB.
"""

MOST_GROWTH_COUNT = 20
"""Threads, or file descriptors: likewise."""


def soak(minutes: float, seed: int, folder: Path) -> None:
    """Train for so long, and write ``soak.png`` into a folder.

    Raises
    ------
    AssertionError
        If anything is not as it has to be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # of glibc: an arena for each thread keeps the most that the thread ever had
    os.environ["MALLOC_ARENA_MAX"] = "2"
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(
        target=serve, args=(theirs, 60 * minutes), daemon=True
    )
    server.start()
    theirs.close()
    assert server.pid is not None
    watch = Watch(server.pid)
    devices = Devices(ours, seed)
    try:
        first = answer_until_the_end(ours, devices, watch, seed)
    finally:
        devices.stop()
        watch.stop()
        plot(watch.samples, folder / "soak.png")
        server.join(30)
    check_growth(watch.samples[first:], is_checked=minutes >= LEAST_MINUTES)


def answer_until_the_end(
    pipe: Connection, devices: Devices, watch: Watch, seed: int
) -> int:
    """Answer what the server sends; return the number of samples before the attacks."""
    begun = time.monotonic()
    first = 0
    with contextlib.ExitStack() as attacks:
        while True:
            told = pipe.recv()
            if isinstance(told, Packed):
                devices.answer(told)
                continue
            kind, what = told
            if kind == "leg":
                devices.begin(LEGS[what])
                watch.leg = LEGS[what].name
            elif kind == "attack":
                first = len(watch.samples)
                attacks.enter_context(Strangers(devices, seed))
            elif kind == "turns":
                minutes = (time.monotonic() - begun) / 60
                print(f"{minutes:.1f} min: {what} honest turns, all whole", flush=True)
            else:
                assert kind == "done", what
                return first


def check_growth(samples: list[Sample], is_checked: bool) -> None:
    for what, most in {
        "rss_bytes": MOST_GROWTH_BYTES,
        "threads": MOST_GROWTH_COUNT,
        "descriptors": MOST_GROWTH_COUNT,
    }.items():
        grown = growth(samples, what)
        print(f"{what}: {grown:+.0f} from the third quarter to the last")
        if is_checked:
            assert grown <= most, f"{what} grew by {grown:.0f}, wanted at most {most}"
