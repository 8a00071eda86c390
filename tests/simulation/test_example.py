"""The example app in Flower's simulation engine, started as a user starts it."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.simulation

ROOT = Path(__file__).parents[2]
DEVICES = 4


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def end_processes_of(flwr_home: Path) -> None:
    """End the SuperLink that `flwr run` left behind, with all it started: they carry this FLWR_HOME."""
    mark = f"FLWR_HOME={flwr_home}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if int(process.name) != os.getpid() and mark in (process / "environ").read_bytes().split(b"\0"):
                os.kill(int(process.name), signal.SIGKILL)
        except OSError:
            continue


@pytest.fixture(scope="module")
def flwr_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., dict[str, Any]]]:
    """Runs the example with a run-config; gives its results.json, and its log under "log"."""
    home, elsewhere = tmp_path_factory.mktemp("flwr-home"), tmp_path_factory.mktemp("elsewhere")
    env = os.environ | {
        "FLWR_HOME": str(home),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(free_port()),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }

    def run(config_file: Path, **settings: Any) -> dict[str, Any]:
        results = tmp_path_factory.mktemp("results")
        merged = elsewhere / "run-config.toml"
        settings = {"num-devices": DEVICES, "steps-per-turn": 5, "results-dir": str(results), **settings}
        kept = [line for line in config_file.read_text().splitlines() if line.split(" =")[0] not in settings]
        merged.write_text("\n".join(kept + [f"{key} = {json.dumps(value)}" for key, value in settings.items()]))
        command = ["flwr", "run", str(ROOT / "examples" / "mnist"), "--stream", "--run-config", str(merged)]
        command += ["--federation-config", f"num-supernodes={DEVICES} client-resources-num-cpus=1"]
        finished = subprocess.run(command, cwd=elsewhere, env=env, capture_output=True, text=True, timeout=240)
        log = finished.stdout + finished.stderr
        assert (results / "results.json").exists(), log[-5000:]
        return {**json.loads((results / "results.json").read_text()), "log": log}

    yield run
    end_processes_of(home)


def test_splitfc_trains_digits_within_its_budgets(flwr_run: Callable[..., dict[str, Any]]) -> None:
    results = flwr_run(ROOT / "strategies" / "splitfc.toml", **{"num-rounds": 12, "evaluate-every": 6})
    rounds = results["rounds"]
    assert [row["round"] for row in rounds] == list(range(1, 13))
    assert all(0.15 < row["uplink_bits_per_entry"] <= 0.2 for row in rounds)
    assert all(0.3 < row["downlink_bits_per_entry"] <= 0.4 for row in rounds)
    assert [row["round"] for row in rounds if row["accuracy"] is not None] == [6, 12]
    assert all(row["steps"] == 5 for row in rounds)
    assert results["run_config"]["reduction"] == 8
    assert "round 12/12 | loss" in results["log"]


def test_fedavg_trains_the_same_model(flwr_run: Callable[..., dict[str, Any]]) -> None:
    results = flwr_run(ROOT / "strategies" / "fedavg.toml", **{"num-rounds": 3, "evaluate-every": 3})
    rounds = results["rounds"]
    assert len(rounds) == 3
    assert rounds[2]["loss"] < rounds[0]["loss"]
    assert all(row["steps"] == 5 * DEVICES for row in rounds)
    assert rounds[0]["uplink_bytes"] == rounds[0]["downlink_bytes"] > DEVICES * 100_000


def test_sampled_devices_share_one_server_half(flwr_run: Callable[..., dict[str, Any]]) -> None:
    settings = {"num-rounds": 4, "devices": "fedavg", "evaluate-every": 2, "evaluate-on-devices": True}
    results = flwr_run(ROOT / "strategies" / "split-learning.toml", **settings, **{"optimizer-state": "per-device"})
    rounds = results["rounds"]
    assert all(row["steps"] == 5 * DEVICES for row in rounds)
    assert all(row["uplink_bits_per_entry"] == 32 for row in rounds)
    assert rounds[3]["loss"] < rounds[0]["loss"]
