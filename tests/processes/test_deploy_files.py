"""What docs/deploy starts in containers, started here as processes on loopback."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.processes.flwr_run import FlwrRun
from tests.processes.pki import make_pki
from tests.processes.processes import free_port, wait_until

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "docs" / "deploy"
NODES = 2


def compose() -> dict[str, Any]:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    return {name: service["command"] for name, service in services.items()}


def kubernetes() -> dict[str, Any]:
    """The commands of the containers, by the names that Compose has for them."""
    commands = {}
    for resource in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()):
        if resource["kind"] not in ("Deployment", "StatefulSet"):
            continue
        (container,) = resource["spec"]["template"]["spec"]["containers"]
        command = [
            part.replace("/secrets/", "/run/secrets/") for part in container["command"]
        ]
        name = resource["metadata"]["name"]
        if resource["kind"] == "Deployment":
            commands[name] = command
            continue
        for index in range(resource["spec"]["replicas"]):
            own = [part.replace("$(POD_INDEX)", str(index)) for part in command]
            commands[f"{name}-{index}"] = own
    return commands


def test_both_files_start_the_same_commands() -> None:
    assert kubernetes() == compose()


def test_each_container_has_a_health_check() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    for service in services.values():
        address = service["healthcheck"]["test"][-1]
        port = address.rpartition(":")[2]
        assert f"--health-server-address=0.0.0.0:{port}" in service["command"]


def image_environment() -> dict[str, str]:
    """The variables that the Dockerfile sets."""
    lines = (DEPLOY / "Dockerfile").read_text().replace("\\\n", "").splitlines()
    (variables,) = (line for line in lines if line.startswith("ENV "))
    return dict(each.split("=") for each in variables.split()[1:])


def test_strangers_fill_no_log_of_the_containers() -> None:
    """gRPC writes a line for each bad header field, unless the image silences it."""
    command = [sys.executable, "-m", "tests.exchange.bad_headers"]
    environment = {**os.environ, **image_environment()}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.stdout == "sent and read\n", done.stderr[-3000:]
    assert "metadata" not in done.stderr


class Containers(FlwrRun):
    """The containers' commands, with paths and addresses of this machine."""

    def __init__(self, folders: pytest.TempPathFactory) -> None:
        super().__init__(folders)
        secrets = folders.mktemp("secrets")
        pki = make_pki(secrets, "127.0.0.1", nodes=NODES)
        pki.ca.rename(secrets / "ca.crt")
        pki.chain.rename(secrets / "server.crt")
        pki.key.rename(secrets / "server.key")
        (secrets / "superexec.secret").write_bytes(b"a secret of 32 bytes, or of more")
        self.secrets = secrets
        self.port = free_port()
        self.health: dict[str, str] = {}
        (self.home / "config.toml").write_text(
            '[superlink]\ndefault = "deployed"\n\n[superlink.deployed]\n'
            f'address = "127.0.0.1:{self.port}"\n'
            f'root-certificates = "{secrets / "ca.crt"}"\n'
        )

    def _where(self, num_devices: int, at_once: int) -> list[str]:
        return ["deployed"]

    def start(self, name: str, command: list[str]) -> None:
        """Start a container's command, and wait until it is healthy."""
        self.health[name] = f"127.0.0.1:{free_port()}"
        here = {
            "/run/secrets/": f"{self.secrets}/",
            "/state/": f"{self.home}/",
            "superlink:8000": f"127.0.0.1:{self.port}",
            "--port=8000": f"--port={self.port}",
            "0.0.0.0:8090": self.health[name],
            "--host=0.0.0.0": "--host=127.0.0.1",
        }
        for there, own in here.items():
            command = [part.replace(there, own) for part in command]
        if command[0] == "flower-supernode":
            # a container has the default port for itself
            command = [*command, f"--port={free_port()}"]
        with (self.home / f"{name}.log").open("w") as log:
            subprocess.Popen(
                command, env=self.env, cwd=self.elsewhere, stdout=log, stderr=log
            )
        wait_until(lambda: self.is_healthy(name), f"{name} is healthy")

    def is_healthy(self, name: str) -> bool:
        check = [sys.executable, str(DEPLOY / "health.py"), self.health[name]]
        return subprocess.run(check).returncode == 0

    def register(self, index: int) -> None:
        key = self.secrets / f"node-{index}.pub"
        subprocess.run(
            ["flwr", "supernode", "register", str(key), "deployed"],
            env=self.env,
            cwd=self.elsewhere,
            check=True,
            capture_output=True,
        )


@pytest.fixture(scope="module")
def containers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    run = Containers(tmp_path_factory)
    try:
        yield run
    finally:
        run.end()


@pytest.mark.slow
@pytest.mark.deployment
def test_the_containers_commands_train(containers: Containers) -> None:
    commands = compose()
    containers.start("superlink", commands.pop("superlink"))
    for index in range(NODES):
        containers.register(index)
    for name, command in commands.items():
        containers.start(name, command)
    results = containers(
        DEPLOY / "run.toml",
        num_devices=NODES,
        **{"num-rounds": 1, "split-port": free_port(), "split-address": "127.0.0.1"},
    )
    (row,) = results["rounds"]
    assert row["steps"] == 5 * NODES
    assert all(containers.is_healthy(name) for name in containers.health)
