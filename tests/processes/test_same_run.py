"""The same run in the simulation engine, on real nodes, repeated, resumed and in a comparison."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from flwr_splitfc.strategy.checkpoint import load_checkpoint
from tests.halves import same
from tests.processes.conftest import Comparison, end_processes_of, processes_of

ROOT = Path(__file__).parents[2]
SETTINGS = {"num-rounds": 4, "evaluate-every": 2, "num_devices": 3}
Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def simulated(flwr_run: Run) -> dict[str, Any]:
    return flwr_run(ROOT / "strategies" / "splitfc.toml", **SETTINGS)


def weights_of(results: dict[str, Any]) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = torch.load(
        results["folder"] / "joined.pt", weights_only=True
    )
    return loaded


@pytest.mark.simulation
@pytest.mark.deployment
def test_simulation_and_deployment_send_the_same_payloads(
    simulated: dict[str, Any], deployed_run: Run
) -> None:
    deployed = deployed_run(ROOT / "strategies" / "splitfc.toml", **SETTINGS)
    assert deployed["payload_digest"] == simulated["payload_digest"]
    assert same(weights_of(deployed), weights_of(simulated))
    same_bytes = ("loss", "accuracy", "steps", "uplink_bytes", "downlink_bytes")
    for ours, theirs in zip(deployed["rounds"], simulated["rounds"], strict=True):
        assert {key: ours[key] for key in same_bytes} == {
            key: theirs[key] for key in same_bytes
        }
    assert deployed["versions"] == simulated["versions"]
    assert deployed["torch_threads"] == simulated["torch_threads"] == 1


@pytest.mark.simulation
def test_rerun_repeats_a_run_from_its_results(
    simulated: dict[str, Any],
    flwr_run: Any,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: Any,
) -> None:
    from flwr_splitfc.command import main

    for key in ("FLWR_HOME", "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT", "PATH"):
        monkeypatch.setenv(key, flwr_run.env[key])
    monkeypatch.chdir(flwr_run.elsewhere)
    app, results = (
        str(ROOT / "examples" / "mnist"),
        str(simulated["folder"] / "results.json"),
    )
    assert main(["rerun", results, app, "--results-dir", str(tmp_path)]) == 0
    assert "payloads as in the first run" in capfd.readouterr().out


@pytest.mark.simulation
def test_a_killed_server_app_goes_on_where_it_was(
    simulated: dict[str, Any], flwr_run: Any, tmp_path: Path
) -> None:
    """The process is killed as soon as a round is complete; the next run finishes the rest."""
    settings = {**SETTINGS, "checkpoint-dir": str(tmp_path)}

    def kill() -> None:
        deadline = time.monotonic() + 120
        while (state := load_checkpoint(tmp_path)) is None or state["round"] < 1:
            assert time.monotonic() < deadline, "no round was completed"
            time.sleep(0.02)
        flwr_run.kill_server_app()

    flwr_run(ROOT / "strategies" / "splitfc.toml", meanwhile=kill, **settings)
    state = load_checkpoint(tmp_path)
    assert state is not None
    assert 1 <= state["round"] < 4
    resumed = flwr_run(ROOT / "strategies" / "splitfc.toml", **settings)
    assert "Goes on after round" in resumed["log"]
    assert resumed["payload_digest"] == simulated["payload_digest"]
    assert same(weights_of(resumed), weights_of(simulated))
    assert [row["round"] for row in resumed["rounds"]] == [1, 2, 3, 4]


def comparison_in(folder: Path) -> Comparison:
    settings = {
        "num-rounds": 4,
        "evaluate-every": 2,
        "num-devices": 3,
        "steps-per-turn": 5,
    }
    return Comparison(folder, ["splitfc", "split-learning"], "--jobs", "1", **settings)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Comparison]:
    comparison = comparison_in(tmp_path_factory.mktemp("compared"))
    comparison.finish()
    yield comparison
    end_processes_of(comparison.home)


@pytest.mark.simulation
def test_a_run_of_a_comparison_sends_the_same_payloads(
    simulated: dict[str, Any], compared: Comparison
) -> None:
    results = compared.tables()[1][0]["results"]
    assert results["payload_digest"] == simulated["payload_digest"]
    assert [row["accuracy"] for row in results["rounds"]] == [
        row["accuracy"] for row in simulated["rounds"]
    ]


@pytest.mark.simulation
def test_a_killed_comparison_goes_on_and_ends_as_an_undisturbed_one(
    compared: Comparison, tmp_path: Path
) -> None:
    killed = comparison_in(tmp_path)
    try:
        process = killed.start()
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("[1/2]") and line.endswith("started\n"):
                break
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        deadline = time.monotonic() + 30
        while list(processes_of(killed.home)):
            assert time.monotonic() < deadline, (
                "the killed comparison left processes behind"
            )
            time.sleep(0.1)
        assert len(killed.finished()) == 1
        assert not (killed.out / "table.md").exists()

        output = killed.finish()
        assert "[1/2] split-learning seed 0: started" in output
        assert "splitfc 0.2/0.4 seed 0: started" not in output
        assert killed.finished() == compared.finished()
        assert killed.tables() == compared.tables()
    finally:
        end_processes_of(killed.home)
