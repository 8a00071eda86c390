"""Processes that a test starts: found by what is in their environment, and ended."""

import contextlib
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# A bound for what ends by itself; a test that reaches it has failed.
PATIENCE_S = 300.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.02)


def wait_for_port(port: int) -> None:
    """Wait until something listens on a port of this machine."""

    def listens() -> bool:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return True
        except OSError:
            return False

    wait_until(listens, f"something listens on port {port}")


def wait_for_line(log: Path, pattern: str) -> None:
    """Wait until a line of the log matches."""
    wait_until(
        lambda: re.search(pattern, log.read_text()), f"a line {pattern!r} in {log}"
    )


def processes_with(variable: str) -> Iterator[Path]:
    """Other processes with ``NAME=value`` in their environment, as folders of ``/proc``."""
    wanted = variable.encode()
    for process in Path("/proc").glob("[0-9]*"):
        if int(process.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if wanted in (process / "environ").read_bytes().split(b"\0"):
                yield process


def processes_of(flwr_home: Path) -> Iterator[Path]:
    """Processes that `flwr run` started, and the SuperLink that it leaves behind."""
    return processes_with(f"FLWR_HOME={flwr_home}")


def server_apps_of(flwr_home: Path) -> Iterator[Path]:
    """Of these, the processes that hold a ServerApp in the simulation engine."""
    for process in processes_of(flwr_home):
        with contextlib.suppress(OSError):
            if b"flwr-simulation" in (process / "cmdline").read_bytes():
                yield process


def send(process: Path, sign: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to a process that may have ended."""
    with contextlib.suppress(OSError):
        os.kill(int(process.name), sign)


def end_processes_of(flwr_home: Path) -> None:
    for process in processes_of(flwr_home):
        send(process)


class MemoryWatch:
    """Samples the resident memory of the process that holds the ServerApp, in bytes."""

    def __init__(self, flwr_home: Path) -> None:
        self.samples: list[int] = []
        self._home = flwr_home
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "MemoryWatch":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            for process in server_apps_of(self._home):
                with contextlib.suppress(OSError, IndexError, ValueError):
                    pages = int((process / "statm").read_text().split()[1])
                    self.samples.append(pages * os.sysconf("SC_PAGE_SIZE"))
