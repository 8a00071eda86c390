"""`flwr run` as a user calls it, in the simulation engine or on a SuperLink with SuperNodes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.processes.pki import make_pki
from tests.processes.processes import (
    MemoryWatch,
    end_processes_of,
    free_port,
    processes_of,
    processes_with,
    send,
    server_apps_of,
    wait_for_port,
)

ROOT = Path(__file__).parents[2]

# Ray gives its daemon 30 seconds to start; a busy machine now and then needs more.
RAY_WAS_TOO_SLOW = "The current node timed out during startup"


class FlwrRun:
    """Runs the examples with run-configs in the simulation engine.

    Everything that could be shared with another test that runs at the same time is its
    own: FLWR_HOME, the port of the SuperLink that `flwr run` starts, Ray's folder.
    """

    def __init__(self, folders: pytest.TempPathFactory) -> None:
        self._folders = folders
        self.home = folders.mktemp("flwr-home")
        self.elsewhere = folders.mktemp("elsewhere")
        self.log = self.elsewhere / "log.txt"
        # Ray's sockets stand in it, and their paths may have 107 bytes at most.
        self._ray = Path(tempfile.mkdtemp(prefix="ray-"))
        self.env = os.environ | {
            "FLWR_HOME": str(self.home),
            "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(free_port()),
            "PATH": self._path("PATH", Path(sys.executable).parent),
            "PYTHONPATH": self._path("PYTHONPATH", ROOT),  # tests' data sets
            "RAY_TMPDIR": str(self._ray),
        }

    @staticmethod
    def _path(variable: str, first: Path) -> str:
        """The folders of a variable of the environment, after one of ours."""
        before = os.environ.get(variable)
        return f"{first}{os.pathsep}{before}" if before else str(first)

    def end(self) -> None:
        """End every process that was started here."""
        end_processes_of(self.home)
        shutil.rmtree(self._ray, ignore_errors=True)

    def kill_server_app(self) -> None:
        """Kill (-9) the process that holds the ServerApp, and the command that waits for it.

        Flower would miss it a minute later.
        """
        for process in server_apps_of(self.home):
            send(process)
        self._command.kill()

    def actors(self) -> list[Path]:
        """The processes of the simulation's devices."""
        return [
            process
            for process in processes_of(self.home)
            if b"ClientAppActor" in (process / "cmdline").read_bytes()
        ]

    def __call__(
        self,
        config_file: Path,
        num_devices: int = 4,
        at_once: int = 1,
        meanwhile: Callable[[], None] | None = None,
        app: str = "mnist",
        **settings: Any,
    ) -> dict[str, Any]:
        """The run's results.json, with its log, its folder and the ServerApp's memory.

        In a simulation so many devices train at the same time, each in a process that
        takes seconds to start. `meanwhile` is called while the run goes on; if that kills
        the run, there is nothing but the log.
        """
        results = self._folders.mktemp("results")
        settings = {
            "num-devices": num_devices,
            "steps-per-turn": 5,
            "results-dir": str(results),
            **settings,
        }
        command = [
            *("flwr", "run", str(ROOT / "examples" / app)),
            *self._where(num_devices, at_once),
            *("--stream", "--run-config", str(self._run_config(config_file, settings))),
        ]
        memory = self._run(command, meanwhile)
        if RAY_WAS_TOO_SLOW in self.log.read_text():
            memory = self._run(command, meanwhile)
        log = self.log.read_text()
        if not (results / "results.json").exists():
            assert meanwhile, log[-5000:]
            return {"log": log}
        written = json.loads((results / "results.json").read_text())
        return {**written, "log": log, "folder": results, "memory": memory}

    def _where(self, num_devices: int, at_once: int) -> list[str]:
        """Options of `flwr run` that say where the app runs."""
        federation = f"num-supernodes={num_devices} init-args-num-cpus={at_once}"
        federation += " client-resources-num-cpus=1"
        return ["--federation-config", federation]

    def _run_config(self, config_file: Path, settings: dict[str, Any]) -> Path:
        """A run-config of the shelf, with other settings."""
        lines = config_file.read_text().splitlines()
        kept = [line for line in lines if line.split(" =")[0] not in settings]
        own = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
        merged = self.elsewhere / "run-config.toml"
        merged.write_text("\n".join(kept + own))
        return merged

    def _run(
        self, command: list[str], meanwhile: Callable[[], None] | None
    ) -> list[int]:
        """Run to the end, with output to the log; return samples of the memory."""
        self.log.write_text("")
        with (
            MemoryWatch(self.home) as memory,
            ThreadPoolExecutor(1) as pool,
            self.log.open("a") as log_file,
        ):
            self._command = subprocess.Popen(
                command,
                cwd=self.elsewhere,
                env=self.env,
                stdout=log_file,
                stderr=log_file,
            )
            done = pool.submit(meanwhile) if meanwhile else None
            try:
                self._command.wait(timeout=500)
            finally:
                self._command.kill()
            if done is not None:
                done.result()
        return memory.samples


class Deployment(FlwrRun):
    """Runs on a SuperLink with SuperNodes, all on loopback.

    `secure` is with Flower's TLS and node authentication.
    """

    def __init__(
        self, folders: pytest.TempPathFactory, *, num_nodes: int, secure: bool = False
    ) -> None:
        super().__init__(folders)
        self.env["FLWR_LOG_LEVEL"] = "DEBUG"
        self.num_nodes = num_nodes
        self.port = free_port()
        self._pki = make_pki(self.home, nodes=num_nodes) if secure else None
        if self._pki:
            trust = f'root-certificates = "{self._pki.ca}"'
            server = [
                *("--ssl-ca-certfile", str(self._pki.ca)),
                *("--ssl-certfile", str(self._pki.chain)),
                *("--ssl-keyfile", str(self._pki.key)),
                "--enable-supernode-auth",
            ]
        else:
            trust = "insecure = true"
            server = ["--insecure"]
        (self.home / "config.toml").write_text(
            '[superlink]\ndefault = "deployment"\n\n'
            f'[superlink.deployment]\naddress = "127.0.0.1:{self.port}"\n{trust}\n'
        )
        where = ["--host", "127.0.0.1", "--port", str(self.port)]
        self._start("flower-superlink", *server, *where)
        wait_for_port(self.port)

    def _where(self, num_devices: int, at_once: int) -> list[str]:
        return ["deployment"]

    def _start(self, *command: str, **environment: str) -> None:
        with (self.home / f"{command[0]}.log").open("a") as log:
            subprocess.Popen(
                command,
                env=self.env | environment,
                cwd=self.elsewhere,
                stdout=log,
                stderr=log,
            )

    def start_node(self, index: int, node_config: str = "") -> None:
        """Start SuperNode number `index`, with more in its node config.

        Its processes carry the mark ``SPLIT_NODE``.
        """
        node = f"partition-id={index} num-partitions={self.num_nodes} {node_config}"
        self._start(
            "flower-supernode",
            *self._node_credentials(index),
            *("--superlink", f"127.0.0.1:{self.port}"),
            *("--port", str(free_port())),
            *("--node-config", node),
            SPLIT_NODE=f"{self.home}/{index}",
        )

    def _node_credentials(self, index: int) -> list[str]:
        """Options by which a node proves who it is, once it is registered."""
        if not self._pki:
            return ["--insecure"]
        key = self._pki.nodes[index]
        subprocess.run(
            ["flwr", "supernode", "register", f"{key}.pub", "deployment"],
            env=self.env,
            cwd=self.elsewhere,
            check=True,
            capture_output=True,
        )
        trust = ["--root-certificates", str(self._pki.ca)]
        return [*trust, "--auth-supernode-private-key", str(key)]

    def kill_node(self, index: int) -> None:
        """Kill every process of a SuperNode, as if its machine failed."""
        for process in processes_with(f"SPLIT_NODE={self.home}/{index}"):
            send(process, signal.SIGKILL)
