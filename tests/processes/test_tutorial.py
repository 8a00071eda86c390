"""The tutorial's app as its reader starts it: in Flower's simulation engine, and on real nodes."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes.flwr_run import FlwrRun
from tests.processes.processes import free_port, wait_for_port
from tests.tutorial import Commands, follow


class Shell:
    """Runs the page's commands in a folder of their own, with a FLWR_HOME of their own."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, environment

    def start(self, line: str) -> None:
        with (self.folder / "log.txt").open("a") as log:
            subprocess.Popen(
                ["bash", "-c", line],
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=log,
            )

    def run(self, lines: list[str]) -> str:
        script = ["bash", "-euc", "\n".join(lines)]
        done = subprocess.run(
            script,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=500,  # beside four other runs on two cores, real nodes took 229 s
        )
        return done.stdout + done.stderr


@pytest.fixture
def shell(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Iterator[Shell]:
    flwr = FlwrRun(tmp_path_factory)
    yield Shell(tmp_path, flwr.env)
    flwr.end()


def last_commands(folder: Path, step: int) -> Commands:
    return list(follow(folder, until=step))[-1]


@pytest.mark.extended
@pytest.mark.simulation
def test_splitfc_in_the_simulation_engine(shell: Shell, tmp_path: Path) -> None:
    commands = last_commands(tmp_path, 3)
    commands.check(shell.run(commands.lines), tmp_path)


@pytest.mark.deployment
@pytest.mark.slow
def test_real_nodes(shell: Shell, tmp_path: Path) -> None:
    commands = last_commands(tmp_path, 6)
    ports = {port: str(free_port()) for port in ("8000", "8001", "8002", "9099")}

    def moved(line: str) -> str:
        return re.sub(r"\b(8000|8001|8002|9099)\b", lambda port: ports[port[0]], line)

    for line in commands.lines[:3]:
        shell.start(moved(line).removesuffix("&"))
    wait_for_port(int(ports["8000"]))
    printed = shell.run([moved(line) for line in commands.lines[3:]])
    Commands(commands.step, [], [moved(line) for line in commands.shown]).check(
        printed, tmp_path
    )
