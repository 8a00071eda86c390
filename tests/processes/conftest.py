"""Runs the examples as a user does: `flwr run` in a subprocess, with a FLWR_HOME and a port of its own."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
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


class FlwrRun:
    """Runs the examples with run-configs, over one SuperLink of its own."""

    def __init__(self, tmp_path_factory: pytest.TempPathFactory, *, superlink: str = "") -> None:
        self._folders = tmp_path_factory
        self.home, self.elsewhere = tmp_path_factory.mktemp("flwr-home"), tmp_path_factory.mktemp("elsewhere")
        self.superlink = superlink
        self.env = os.environ | {
            "FLWR_HOME": str(self.home),
            "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(free_port()),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),  # tests' data sets
        }

    def kill_server_app(self) -> None:
        """Kill (-9) the process that holds the ServerApp."""
        for process in processes_of(self.home):
            with contextlib.suppress(OSError):
                if b"flwr-simulation" in (process / "cmdline").read_bytes():
                    os.kill(int(process.name), signal.SIGKILL)

    def __call__(
        self,
        config_file: Path,
        num_devices: int = 4,
        meanwhile: Callable[[], None] | None = None,
        app: str = "mnist",
        **settings: Any,
    ) -> dict[str, Any]:
        """The run's results.json, with its log, its folder and the ServerApp's memory; nothing if it was killed."""
        results = self._folders.mktemp("results")
        settings = {"num-devices": num_devices, "steps-per-turn": 5, "results-dir": str(results), **settings}
        kept = [line for line in config_file.read_text().splitlines() if line.split(" =")[0] not in settings]
        merged = self.elsewhere / "run-config.toml"
        merged.write_text("\n".join(kept + [f"{key} = {json.dumps(value)}" for key, value in settings.items()]))
        command = ["flwr", "run", str(ROOT / "examples" / app), *self.superlink.split(), "--stream"]
        command += ["--run-config", str(merged)]
        if not self.superlink:
            command += ["--federation-config", f"num-supernodes={num_devices} client-resources-num-cpus=1"]
        with MemoryWatch(self.home) as memory, ThreadPoolExecutor(1) as pool:
            done = pool.submit(meanwhile) if meanwhile else None
            finished = subprocess.run(
                command, cwd=self.elsewhere, env=self.env, capture_output=True, text=True, timeout=500
            )
        log = finished.stdout + finished.stderr
        if done is not None:
            done.result()
            return {"log": log}
        assert (results / "results.json").exists(), log[-5000:]
        written = json.loads((results / "results.json").read_text())
        return {**written, "log": log, "folder": results, "memory": memory.samples}


@pytest.fixture(scope="module")
def flwr_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlwrRun]:
    """Runs in the simulation engine."""
    run = FlwrRun(tmp_path_factory)
    yield run
    end_processes_of(run.home)


@pytest.fixture(scope="module")
def deployed_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlwrRun]:
    """Runs on a SuperLink with three SuperNodes, all on loopback."""
    run = FlwrRun(tmp_path_factory, superlink="deployment")
    port = free_port()
    (run.home / "config.toml").write_text(
        f'[superlink]\ndefault = "deployment"\n\n[superlink.deployment]\n'
        f'address = "127.0.0.1:{port}"\ninsecure = true\n'
    )

    def start(*command: str) -> None:
        with (run.home / f"{command[0]}.log").open("a") as log:
            subprocess.Popen([*command, "--insecure"], env=run.env, cwd=run.elsewhere, stdout=log, stderr=log)

    try:
        start("flower-superlink", "--host", "127.0.0.1", "--port", str(port))
        wait_for(port)
        for i in range(3):
            node = f"partition-id={i} num-partitions=3"
            start(
                *("flower-supernode", "--superlink", f"127.0.0.1:{port}"),
                *("--port", str(free_port()), "--node-config", node),
            )
        yield run
    finally:
        end_processes_of(run.home)


def wait_for(port: int, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        assert time.monotonic() < deadline, f"nothing listens on port {port}"
        time.sleep(0.2)
