"""Runs the examples as a user does: `flwr run` in a subprocess, with a FLWR_HOME and a port of its own."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.processes.pki import make_pki

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def processes_of(flwr_home: Path) -> Iterator[Path]:
    """What `flwr run` started, the SuperLink that it leaves behind included: they carry this FLWR_HOME."""
    return processes_with(f"FLWR_HOME={flwr_home}")


def processes_with(variable: str) -> Iterator[Path]:
    """Other processes with this in their environment."""
    mark = variable.encode()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if int(process.name) != os.getpid() and mark in (
                process / "environ"
            ).read_bytes().split(b"\0"):
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

    def __init__(
        self, tmp_path_factory: pytest.TempPathFactory, *, superlink: str = ""
    ) -> None:
        self._folders = tmp_path_factory
        self.home, self.elsewhere = (
            tmp_path_factory.mktemp("flwr-home"),
            tmp_path_factory.mktemp("elsewhere"),
        )
        self.superlink = superlink
        self.log = self.elsewhere / "log.txt"
        self.env = os.environ | {
            "FLWR_HOME": str(self.home),
            "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(free_port()),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            # tests' data sets
            "PYTHONPATH": os.pathsep.join(
                filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
            ),
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
        settings = {
            "num-devices": num_devices,
            "steps-per-turn": 5,
            "results-dir": str(results),
            **settings,
        }
        kept = [
            line
            for line in config_file.read_text().splitlines()
            if line.split(" =")[0] not in settings
        ]
        merged = self.elsewhere / "run-config.toml"
        merged.write_text(
            "\n".join(
                kept
                + [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
            )
        )
        command = [
            "flwr",
            "run",
            str(ROOT / "examples" / app),
            *self.superlink.split(),
            "--stream",
        ]
        command += ["--run-config", str(merged)]
        if not self.superlink:
            command += [
                "--federation-config",
                f"num-supernodes={num_devices} client-resources-num-cpus=1",
            ]
        self.log.write_text("")
        with (
            MemoryWatch(self.home) as memory,
            ThreadPoolExecutor(1) as pool,
            self.log.open("a") as log_file,
        ):
            done = pool.submit(meanwhile) if meanwhile else None
            subprocess.run(
                command,
                cwd=self.elsewhere,
                env=self.env,
                stdout=log_file,
                stderr=log_file,
                timeout=500,
            )
        log = self.log.read_text()
        if done is not None:
            done.result()
            if not (results / "results.json").exists():
                return {"log": log}
        assert (results / "results.json").exists(), log[-5000:]
        written = json.loads((results / "results.json").read_text())
        return {**written, "log": log, "folder": results, "memory": memory.samples}


class Comparison:
    """Starts `flwr-splitfc compare` in a folder, with a FLWR_HOME by which its processes are known."""

    def __init__(
        self, folder: Path, strategies: Sequence[str], *more: str, **settings: Any
    ) -> None:
        self.home, self.out = folder / "home", folder / "out"
        self.home.mkdir(parents=True)
        options = [
            part
            for key, value in settings.items()
            for part in ("--set", f"{key}={value}")
        ]
        main = "import sys; from flwr_splitfc.command import main; sys.exit(main())"
        self.command = [
            sys.executable,
            "-c",
            main,
            "compare",
            *(str(ROOT / "strategies" / f"{name}.toml") for name in strategies),
        ]
        self.command += ["--app", str(ROOT / "examples" / "mnist")]
        self.command += ["--out", str(self.out), *more, *options]

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command,
            env={**os.environ, "FLWR_HOME": str(self.home)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self) -> str:
        process = self.start()
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output + self.logs()
        return output

    def logs(self) -> str:
        return "".join(
            path.read_text()[-3000:] for path in self.out.glob("runs/*/log.txt")
        )

    def finished(self) -> list[str]:
        return sorted(path.parent.name for path in self.out.glob("runs/*/results.json"))

    def tables(self) -> tuple[str, list[dict[str, Any]]]:
        """The table, and all runs; without what depends on the clock."""
        table = re.sub(
            r"\| \d+ ((\|[^|\n]*){3}\|)$",
            r"\1",
            (self.out / "table.md").read_text(),
            flags=re.MULTILINE,
        )
        runs = json.loads((self.out / "results.json").read_text())["runs"]
        for run in runs:
            for row in run["results"]["rounds"]:
                del row["seconds"]
            for counts in run["results"]["traffic"].values():
                del (
                    counts["device_codec_seconds"],
                    counts["server_codec_seconds"],
                    counts["link_seconds"],
                )
            run["results"] = {
                key: run["results"][key]
                for key in ("rounds", "traffic", "payload_digest")
            }
        return table, runs


@pytest.fixture(scope="module")
def flwr_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlwrRun]:
    """Runs in the simulation engine."""
    run = FlwrRun(tmp_path_factory)
    yield run
    end_processes_of(run.home)


class Deployment(FlwrRun):
    """Runs on a SuperLink with SuperNodes, all on loopback; `secure` with Flower's TLS and node authentication."""

    def __init__(
        self, tmp_path_factory: pytest.TempPathFactory, *, secure: bool = False
    ) -> None:
        super().__init__(tmp_path_factory, superlink="deployment")
        self.env["FLWR_LOG_LEVEL"] = "DEBUG"
        self.port = free_port()
        self.secure = secure
        self._pki = make_pki(self.home, nodes=3) if secure else None
        trust = (
            f'root-certificates = "{self._pki.ca}"' if self._pki else "insecure = true"
        )
        connection = (
            f'[superlink.deployment]\naddress = "127.0.0.1:{self.port}"\n{trust}\n'
        )
        (self.home / "config.toml").write_text(
            f'[superlink]\ndefault = "deployment"\n\n{connection}'
        )
        server = ["--insecure"]
        if self._pki:
            server = [
                "--ssl-ca-certfile",
                str(self._pki.ca),
                "--ssl-certfile",
                str(self._pki.chain),
            ]
            server += ["--ssl-keyfile", str(self._pki.key), "--enable-supernode-auth"]
        self.start(
            "flower-superlink", *server, "--host", "127.0.0.1", "--port", str(self.port)
        )
        wait_for(self.port)

    def start(self, *command: str, **environment: str) -> None:
        with (self.home / f"{command[0]}.log").open("a") as log:
            subprocess.Popen(
                command,
                env=self.env | environment,
                cwd=self.elsewhere,
                stdout=log,
                stderr=log,
            )

    def start_node(self, index: int, node_config: str = "") -> None:
        """SuperNode number `index`, with more in its node config; its processes carry the mark ``SPLIT_NODE``."""
        client = ["--insecure"]
        if self._pki:
            register = [
                "flwr",
                "supernode",
                "register",
                f"{self._pki.nodes[index]}.pub",
                "deployment",
            ]
            subprocess.run(
                register,
                env=self.env,
                cwd=self.elsewhere,
                check=True,
                capture_output=True,
            )
            client = [
                "--root-certificates",
                str(self._pki.ca),
                "--auth-supernode-private-key",
            ]
            client += [str(self._pki.nodes[index])]
        node = f"partition-id={index} num-partitions=3 {node_config}"
        where = ["--superlink", f"127.0.0.1:{self.port}", "--port", str(free_port())]
        self.start(
            "flower-supernode",
            *client,
            *where,
            "--node-config",
            node,
            SPLIT_NODE=f"{self.home}/{index}",
        )

    def signal_node(self, index: int, sign: signal.Signals = signal.SIGKILL) -> None:
        """Send every process of a SuperNode a signal, as if its machine failed."""
        for process in processes_with(f"SPLIT_NODE={self.home}/{index}"):
            with contextlib.suppress(OSError):
                os.kill(int(process.name), sign)

    def wait_for_log(self, pattern: str, timeout_s: float = 120.0) -> None:
        """Wait until a line of the running app's log matches."""
        deadline = time.monotonic() + timeout_s
        while not re.search(pattern, self.log.read_text()):
            assert time.monotonic() < deadline, f"no line {pattern!r}"
            time.sleep(0.05)


@pytest.fixture(scope="module")
def deployed_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Runs on a SuperLink with three SuperNodes."""
    run = Deployment(tmp_path_factory)
    try:
        for index in range(3):
            run.start_node(index)
        yield run
    finally:
        end_processes_of(run.home)


@pytest.fixture(scope="module")
def secure_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Runs on a SuperLink with TLS, and three SuperNodes that authenticate themselves and name budgets."""
    run = Deployment(tmp_path_factory, secure=True)
    try:
        for index, uplink_bits in enumerate((0.1, 0.2, 0.8)):
            run.start_node(index, f"uplink-bits={uplink_bits}")
        yield run
    finally:
        end_processes_of(run.home)


def wait_for(port: int, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", port), timeout=1),
        ):
            return
        assert time.monotonic() < deadline, f"nothing listens on port {port}"
        time.sleep(0.2)
