"""Every step of `docs/tutorial.md`, in a grid of this process; what the page shows is what it prints."""

import io
import logging
import random
import re
import runpy
import shlex
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict

from tests.local_grid import LocalGrid
from tests.tutorial import follow

IN_PROCESS = 5


def forget_the_app() -> None:
    """Of `digits`, what was imported before its files changed."""
    for name in [name for name in sys.modules if name.split(".")[0] == "digits"]:
        del sys.modules[name]


def flwr_run(folder: Path, arguments: list[str]) -> None:
    """What `flwr run` does, with threads for devices."""
    options = dict(zip(arguments[::2], arguments[1::2], strict=True))
    config = tomllib.loads((folder / "pyproject.toml").read_text())["tool"]["flwr"][
        "app"
    ]["config"]
    config |= tomllib.loads(options.get("--run-config", "").replace(" ", "\n"))
    num_devices = int(
        re.findall(r"num-supernodes=(\d+)", options["--federation-config"])[0]
    )
    client, server = (
        import_module(f"digits.{side}_app").app for side in ("client", "server")
    )
    grid = LocalGrid(client, num_devices, workers=0)
    for context in grid.contexts.values():
        context.run_config = config
    server(grid, Context(1, 1, {}, RecordDict(), config))


def execute(folder: Path, line: str) -> None:
    forget_the_app()
    match shlex.split(line.replace("$PWD", str(folder))):
        case ["flwr", "run", ".", "--stream", *arguments]:
            flwr_run(folder, arguments)
        case ["python", script]:
            runpy.run_path(str(folder / script))
        case ["export", "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1"]:
            pass
        case other:
            raise AssertionError(f"a command that nobody runs: {other}")


@contextmanager
def printed() -> Iterator[io.StringIO]:
    """What the app prints and logs meanwhile."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    logging.getLogger("flwr").addHandler(handler)
    try:
        with redirect_stdout(text):
            yield text
    finally:
        logging.getLogger("flwr").removeHandler(handler)


def test_every_step_runs_and_prints_what_the_page_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    random.seed(0)  # by which FedAvg draws devices
    # files change faster than bytecode's time stamps
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    steps = set()
    for commands in follow(tmp_path, until=IN_PROCESS):
        with printed() as text:
            for line in commands.lines:
                execute(tmp_path, line)
        commands.check(text.getvalue(), tmp_path)
        steps.add(commands.step)
    assert steps == set(range(IN_PROCESS + 1))
    forget_the_app()
