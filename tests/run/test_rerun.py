"""What `flwr-splitfc rerun` asks of `flwr run`, and what it refuses before."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from flwr_splitfc import EndpointConfig, Limits
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
record = {{"run_config": {{**listed, **config}}, "payload_digest": "same"}}
outcome = json.loads(os.environ.get("OUTCOME", "{{}}"))
record["arguments"] = sys.argv
(results / "results.json").write_text(json.dumps(record | outcome))
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


def first_run(tmp_path: Path, config: dict[str, Any], **outcome: Any) -> Path:
    results = tmp_path / "results.json"
    record = {"run_config": config, "payload_digest": "same", **outcome}
    results.write_text(json.dumps(record))
    return results


def rerun(
    tmp_path: Path, app: Path, config: dict[str, Any], *further: str, **outcome: Any
) -> int:
    results = first_run(tmp_path, config, **outcome)
    new = str(tmp_path / "new")
    return main(["rerun", str(results), str(app), *further, "--results-dir", new])


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
def test_settings_reach_the_repetition_whatever_they_are(tmp_path: Path) -> None:
    app = app_that_lists(tmp_path / "app", "[tool.flwr.app.config]\nlimit = 1.0\n")
    record = {"data-dir": 'a "b" \\ \t \x7f ü 😀', "limit": float("inf")}
    recorded = {**record, "limit": {"float": "inf"}}
    assert rerun(tmp_path, app, recorded) == 0
    written = json.loads((tmp_path / "new" / "results.json").read_text())
    assert record.items() <= written["run_config"].items()


@pytest.mark.usefixtures("strict_flwr")
def test_a_key_is_added_whose_value_is_no_number(tmp_path: Path) -> None:
    app = app_that_lists(tmp_path / "app", "")
    assert rerun(tmp_path, app, {"limit": {"float": "nan"}}) == 0
    written = json.loads((tmp_path / "new" / "results.json").read_text())
    assert math.isnan(written["run_config"]["limit"])


@pytest.mark.usefixtures("strict_flwr")
@pytest.mark.parametrize(
    ("further", "passed"),
    [
        ([], ["--federation-config", "num-supernodes=3 client-resources-num-cpus=1"]),
        (["--federation-config", "x=1"], ["--federation-config", "x=1"]),
        (["--federation-config=x=1"], ["--federation-config=x=1"]),
    ],
)
def test_a_federation_is_the_users_own_or_of_the_run_s_devices(
    further: list[str], passed: list[str], tmp_path: Path
) -> None:
    app = app_that_lists(tmp_path / "app", "")
    assert rerun(tmp_path, app, {"num-devices": 3}, *further) == 0
    written = json.loads((tmp_path / "new" / "results.json").read_text())
    assert written["arguments"][-len(passed) :] == passed
    assert sum("--federation-config" in word for word in written["arguments"]) == 1


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


@pytest.mark.usefixtures("strict_flwr")
@pytest.mark.parametrize(
    ("outcome", "status", "said"),
    [
        ({}, 0, "payloads as in the first run"),
        ({"payload_digest": "other"}, 1, "payloads differ from the first run"),
        ({"stopped": "at its target"}, 0, "payloads as in the first run"),
        ({"failed": "no device"}, 1, "failed, and is not compared: no device"),
        ({"unfinished": True}, 1, "was ended before its last round"),
    ],
)
def test_only_a_repetition_that_ended_is_compared(
    outcome: dict[str, Any],
    status: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("OUTCOME", json.dumps(outcome))
    app = app_that_lists(tmp_path / "app", "")
    assert rerun(tmp_path, app, {"seed": 3}) == status
    told = capsys.readouterr()
    assert said in told.out + told.err


def test_a_run_without_a_digest_is_not_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As one of a strategy of Flower's own."""
    fedavg = {"strategy": "fedavg"}
    assert rerun(tmp_path, tmp_path, fedavg, payload_digest=None) == 2
    assert "has no payload_digest" in capsys.readouterr().err


DEPLOYED = {
    "split-host": "0.0.0.0",
    "split-port": 9099,
    "split-address": "10.0.0.1",
    "split-tls": "on",
    "split-certificate": "/srv/server.crt",
    "split-private-key": "/srv/server.key",
    "split-ca-certificate": "/srv/ca.crt",
    "split-idle-timeout-s": 9.0,
}


@pytest.mark.usefixtures("strict_flwr")
@pytest.mark.parametrize(
    ("further", "kept"),
    [
        ([], False),
        (["--federation-config", "num-supernodes=2"], False),
        (["ours"], True),
        (["ours", "--federation", "@us/ours"], True),
    ],
)
def test_a_simulation_is_not_served_where_the_first_run_was(
    further: list[str], kept: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    app = app_that_lists(tmp_path / "app", "")
    assert rerun(tmp_path, app, DEPLOYED, *further) == 0
    written = json.loads((tmp_path / "new" / "results.json").read_text())
    config = {key: written["run_config"][key] for key in DEPLOYED}
    endpoint = EndpointConfig(limits=Limits(idle_timeout_s=9.0))
    assert (config == DEPLOYED) is kept
    assert kept or EndpointConfig.from_run_config(config) == endpoint
    told = "left out of a simulation: split-host, split-port, split-address"
    assert (told in capsys.readouterr().err) is not kept


WAITS = """\
#!/bin/bash
touch "$STARTED"
exec sleep 1000
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_what_ends_the_command_ends_what_it_has_started(
    sent: signal.Signals, tmp_path: Path
) -> None:
    app = app_that_lists(tmp_path / "app", "[tool.flwr.app.config]\nresults-dir = ''\n")
    results = first_run(tmp_path, {})
    started = tmp_path / "started"
    flwr = tmp_path / "bin" / "flwr"
    flwr.parent.mkdir()
    flwr.write_text(WAITS)
    flwr.chmod(0o755)
    # a shell that runs tests in the background has them ignore Ctrl-C
    code = f"""
import signal
import sys
from flwr_splitfc.command import main
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.executable = {str(flwr.with_name("python"))!r}
sys.exit(main(["rerun", {str(results)!r}, {str(app)!r}]))
"""
    command = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "STARTED": str(started)},
        stderr=subprocess.PIPE,
        text=True,
    )
    while not started.exists():
        assert command.poll() is None
        time.sleep(0.01)
    command.send_signal(sent)
    # the pipe ends when the other process, too, has ended
    _, told = command.communicate(timeout=60)
    assert command.returncode == 130
    assert told.splitlines()[-1].startswith("flwr-splitfc: stopped")
    assert "Traceback" not in told


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
        ('{"run_config": {"seed": {"float": "x"}}}', "could not convert string to"),
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
    assert main(["rerun", str(results), "app", "--results-dir", str(results)]) == 2
    assert f"--results-dir {results} is no folder" in capsys.readouterr().err
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
    # there is no app, so nothing is run
    rerun(tmp_path, tmp_path, config)
    assert why in capsys.readouterr().err


@pytest.mark.parametrize(
    ("outcome", "why"),
    [
        ({"failed": "no device came"}, "the run failed: no device came"),
        ({"unfinished": True}, "the run was ended before its last round"),
    ],
)
def test_a_first_run_that_did_not_end_is_said(
    outcome: dict[str, Any],
    why: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rerun(tmp_path, tmp_path, {}, **outcome)
    assert why in capsys.readouterr().err
