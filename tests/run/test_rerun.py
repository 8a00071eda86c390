"""What `flwr-splitfc rerun` asks of `flwr run`, and what it refuses before."""

import json
import os
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from flwr_splitfc.command import main
from tests.processes.flwr_run import FlwrRun

PROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "few"
version = "1.0.0"
description = "an app whose run-config lists few keys"
license = "Apache-2.0"
dependencies = ["flwr>=1.41"]

[tool.hatch.build.targets.wheel]
packages = ["few"]

[tool.flwr.app]
publisher = "nobody"

[tool.flwr.app.components]
serverapp = "few.apps:server"
clientapp = "few.apps:client"
"""

APPS = """\
import torch
from torch import nn

from flwr_splitfc import SplitClientApp, SplitServerApp

device_half = lambda: nn.Sequential(nn.Linear(4, 3), nn.ReLU())
server_half = lambda: nn.Linear(3, 2)
batches = [(torch.ones(8, 4), torch.arange(8) % 2)]
optimizer = torch.optim.SGD
client = SplitClientApp(
    device_half, lambda context: (batches, batches), lambda parameters: optimizer(parameters, 0.1)
)
server = SplitServerApp(device_half, server_half, nn.CrossEntropyLoss(), optimizer)
"""

# It refuses keys that the app does not list, as Flower does, and starts nothing.
FLWR = """\
#!{python}
import json, os, sys, tomllib
from pathlib import Path

if sys.argv[1] == "build":
    os.execv({flwr!r}, [{flwr!r}, *sys.argv[1:]])
app = tomllib.loads((Path(sys.argv[2]) / "pyproject.toml").read_text())
listed = app["tool"]["flwr"]["app"].get("config", {{}})
config = tomllib.loads(Path(sys.argv[sys.argv.index("--run-config") + 1]).read_text())
if config.keys() - listed.keys():
    sys.exit("Invalid run configuration.")
results = Path(config["results-dir"])
results.mkdir()
(results / "results.json").write_text(
    json.dumps({{"run_config": {{**listed, **config}}, "payload_digest": "same"}})
)
"""


def app_that_lists(folder: Path, config: str) -> Path:
    (folder / "few").mkdir(parents=True)
    (folder / "few" / "__init__.py").write_text("")
    (folder / "few" / "apps.py").write_text(APPS)
    (folder / "pyproject.toml").write_text(PROJECT + textwrap.dedent(config))
    return folder


@pytest.fixture
def strict_flwr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command `flwr` beside Python, in whose place nothing runs; the PATH has none."""
    command = tmp_path / "bin" / "flwr"
    command.parent.mkdir()
    real = str(Path(sys.executable).parent / "flwr")
    command.write_text(FLWR.format(python=sys.executable, flwr=real))
    command.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(command.with_name("python")))
    monkeypatch.setenv("PATH", os.defpath)
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "home"))


def rerun(tmp_path: Path, app: Path, config: dict[str, Any]) -> int:
    results = tmp_path / "results.json"
    results.write_text(json.dumps({"run_config": config, "payload_digest": "same"}))
    new = str(tmp_path / "new")
    return main(["rerun", str(results), str(app), "--results-dir", new])


@pytest.mark.usefixtures("strict_flwr")
@pytest.mark.parametrize(
    "config",
    [
        "",
        """
        [tool.flwr.app.config]
        seed = 0
        """,
        """
        [tool.flwr.app.config]  # all of it
        seed = 0

        [tool.flwr.app.config.data]
        rows = 8
        """,
    ],
)
def test_a_run_is_repeated_with_keys_that_its_app_does_not_list(
    config: str, tmp_path: Path
) -> None:
    app = app_that_lists(tmp_path / "app", config)
    before = (app / "pyproject.toml").read_text()
    record = {"seed": 3, "codec": "top-s", "uplink-bits": 0.5, "keep-best": True}
    assert rerun(tmp_path, app, record) == 0
    written = json.loads((tmp_path / "new" / "results.json").read_text())
    assert record.items() <= written["run_config"].items()
    assert (app / "pyproject.toml").read_text() == before


@pytest.mark.usefixtures("strict_flwr")
def test_a_key_that_cannot_be_added_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nested = "[tool.flwr.app.config.data]\nrows = 8\n"
    app = app_that_lists(tmp_path / "app", nested)
    record = {"seed": 3, "data.rows": 9, "data.columns": 2}
    assert rerun(tmp_path, app, record) == 2
    told = capsys.readouterr().err
    assert (
        "does not list seed, data.columns, results-dir: add these below [tool" in told
    )


def test_what_is_no_app_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rerun(tmp_path, tmp_path, {}) == 2
    assert "pyproject.toml cannot be read" in capsys.readouterr().err
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert rerun(tmp_path, tmp_path, {}) == 2
    assert "pyproject.toml describes no Flower app: 'tool'" in capsys.readouterr().err


@pytest.mark.extended
@pytest.mark.simulation
def test_flower_repeats_a_run_of_an_app_that_lists_one_key(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path_factory.mktemp("few")
    app = app_that_lists(folder / "app", "[tool.flwr.app.config]\nnum-rounds = 1\n")
    config = {"num-rounds": 2, "strategy": "split-learning", "num-devices": 2}
    flwr = FlwrRun(tmp_path_factory)
    for key in (
        "FLWR_HOME",
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT",
        "PATH",
        "RAY_TMPDIR",
    ):
        monkeypatch.setenv(key, flwr.env[key])
    monkeypatch.chdir(flwr.elsewhere)
    try:
        assert rerun(folder, app, config) == 1, "the digest was made up"
        shutil.move(folder / "new" / "results.json", folder / "first.json")
        first = str(folder / "first.json")
        again = ["--results-dir", str(folder / "again")]
        assert main(["rerun", first, str(app), *again]) == 0
    finally:
        flwr.end()
    assert "payloads as in the first run" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "Expecting value"),
        ("not json", "Expecting value"),
        ("[" * 200_000, "maximum recursion depth"),
        ("[]", "it is list, wanted dict"),
        ("{}", "it has no run_config"),
        ('{"run_config": []}', "run_config is list, wanted dict"),
        ('{"run_config": null}', "run_config is NoneType, wanted dict"),
        ('{"run_config": {"seed": [1]}}', "seed is [1], wanted bool or int"),
        ('{"run_config": {}, "versions": 3}', "versions is int, wanted dict"),
    ],
)
def test_files_that_are_no_results_are_refused(
    content: str, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results.json"
    results.write_text(content)
    new = ["--results-dir", str(tmp_path / "new")]
    assert main(["rerun", str(results), "app", *new]) == 2
    told = f"{results} is no results.json of a run: {why}"
    assert told in capsys.readouterr().err


def test_results_that_are_no_file_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.json", tmp_path):
        assert main(["rerun", str(path), "app"]) == 2


def test_results_that_are_there_are_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results.json"
    results.write_text(json.dumps({"run_config": {"seed": 0}}))
    before = results.read_text()
    assert main(["rerun", str(results), "app", "--results-dir", str(tmp_path)]) == 2
    assert "give another --results-dir" in capsys.readouterr().err
    assert results.read_text() == before


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"feature-noise": 0.1}, "had noise that nobody can draw again"),
        ({"merge-steps": 2}, "a repetition merges others"),
        ({"turns-at-once": 2}, "takes their mini-batches in another order"),
    ],
)
def test_what_no_repetition_can_do_alike_is_said(
    config: dict[str, float],
    why: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    results = tmp_path / "results.json"
    results.write_text(json.dumps({"run_config": config}))
    new = tmp_path / "new"
    # there is no app, so nothing is run
    main(["rerun", str(results), str(tmp_path), "--results-dir", str(new)])
    assert why in capsys.readouterr().err
