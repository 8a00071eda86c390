"""Runs the example as a user does: `flwr run` in a subprocess, with a FLWR_HOME and a port of its own."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def processes_of(flwr_home: Path) -> Iterator[Path]:
    """What `flwr run` started, the SuperLink that it leaves behind included: they carry this FLWR_HOME."""
    mark = f"FLWR_HOME={flwr_home}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if int(process.name) != os.getpid() and mark in (process / "environ").read_bytes().split(b"\0"):
                yield process
        except OSError:
            continue


def end_processes_of(flwr_home: Path) -> None:
    for process in processes_of(flwr_home):
        with contextlib.suppress(OSError):
            os.kill(int(process.name), signal.SIGKILL)


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
            for process in processes_of(self._home):
                with contextlib.suppress(OSError, IndexError, ValueError):
                    if b"flwr-simulation" in (process / "cmdline").read_bytes():
                        pages = int((process / "statm").read_text().split()[1])
                        self.samples.append(pages * os.sysconf("SC_PAGE_SIZE"))


@pytest.fixture(scope="module")
def flwr_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., dict[str, Any]]]:
    """Runs the example with a run-config; gives its results.json, its log, and the ServerApp's memory."""
    home, elsewhere = tmp_path_factory.mktemp("flwr-home"), tmp_path_factory.mktemp("elsewhere")
    env = os.environ | {
        "FLWR_HOME": str(home),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(free_port()),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }

    def run(config_file: Path, num_devices: int = 4, **settings: Any) -> dict[str, Any]:
        results = tmp_path_factory.mktemp("results")
        merged = elsewhere / "run-config.toml"
        settings = {"num-devices": num_devices, "steps-per-turn": 5, "results-dir": str(results), **settings}
        kept = [line for line in config_file.read_text().splitlines() if line.split(" =")[0] not in settings]
        merged.write_text("\n".join(kept + [f"{key} = {json.dumps(value)}" for key, value in settings.items()]))
        command = ["flwr", "run", str(ROOT / "examples" / "mnist"), "--stream", "--run-config", str(merged)]
        command += ["--federation-config", f"num-supernodes={num_devices} client-resources-num-cpus=1"]
        with MemoryWatch(home) as memory:
            finished = subprocess.run(command, cwd=elsewhere, env=env, capture_output=True, text=True, timeout=500)
        log = finished.stdout + finished.stderr
        assert (results / "results.json").exists(), log[-5000:]
        return {**json.loads((results / "results.json").read_text()), "log": log, "memory": memory.samples}

    yield run
    end_processes_of(home)
