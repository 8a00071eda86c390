"""The same run in the simulation engine, on real nodes, repeated, resumed and in a comparison."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from flwr_splitfc.strategy.checkpoint import load_checkpoint
from tests.halves import same
from tests.processes.comparison import Comparison
from tests.processes.flwr_run import Deployment, FlwrRun
from tests.processes.processes import end_processes_of, processes_of, wait_until

ROOT = Path(__file__).parents[2]
NODES = 2
SETTINGS = {"num-rounds": 4, "evaluate-every": 2, "num_devices": NODES}
SHORT = {**SETTINGS, "num-rounds": 2}


@pytest.fixture(scope="module")
def simulated(flwr_run: FlwrRun) -> dict[str, Any]:
    return flwr_run(ROOT / "strategies" / "splitfc.toml", **SETTINGS)


def weights_of(results: dict[str, Any]) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = torch.load(
        results["folder"] / "joined.pt", weights_only=True
    )
    return loaded


@pytest.mark.deployment
@pytest.mark.simulation
@pytest.mark.parametrize("deployed_run", [NODES], indirect=True)
def test_simulation_and_deployment_send_the_same_payloads(
    flwr_run: FlwrRun, deployed_run: Deployment
) -> None:
    simulated = flwr_run(ROOT / "strategies" / "splitfc.toml", **SHORT)
    deployed = deployed_run(ROOT / "strategies" / "splitfc.toml", **SHORT)
    for row in simulated["rounds"]:
        assert row["steps"] == 5
        assert 0.15 < row["uplink_bits_per_entry"] <= 0.2
        assert 0.3 < row["downlink_bits_per_entry"] <= 0.4
    assert [row["accuracy"] is None for row in simulated["rounds"]] == [True, False]
    assert simulated["run_config"]["reduction"] == 0
    assert "round 2/2 | loss" in simulated["log"]
    assert deployed["payload_digest"] == simulated["payload_digest"]
    assert same(weights_of(deployed), weights_of(simulated))
    same_bytes = ("loss", "accuracy", "steps", "uplink_bytes", "downlink_bytes")
    for ours, theirs in zip(deployed["rounds"], simulated["rounds"], strict=True):
        assert {key: ours[key] for key in same_bytes} == {
            key: theirs[key] for key in same_bytes
        }
    assert deployed["versions"] == simulated["versions"]
    assert deployed["torch_threads"] == simulated["torch_threads"] == 1


@pytest.mark.slow
@pytest.mark.simulation
def test_rerun_repeats_a_run_from_its_results(
    simulated: dict[str, Any],
    flwr_run: FlwrRun,
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


@pytest.mark.extended
@pytest.mark.simulation
def test_a_killed_server_app_goes_on_where_it_was(
    simulated: dict[str, Any], flwr_run: FlwrRun, tmp_path: Path
) -> None:
    """The process is killed as soon as a round is complete; the next run finishes the rest."""
    settings = {**SETTINGS, "checkpoint-dir": str(tmp_path)}

    def round_is_complete() -> bool:
        state = load_checkpoint(tmp_path)
        return state is not None and state["round"] >= 1

    def kill() -> None:
        wait_until(round_is_complete, "a round is complete")
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
        "num-devices": NODES,
        "steps-per-turn": 5,
    }
    return Comparison(folder, ["splitfc", "split-learning"], "--jobs", "1", **settings)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Comparison]:
    comparison = comparison_in(tmp_path_factory.mktemp("compared"))
    comparison.finish()
    yield comparison
    end_processes_of(comparison.home)


@pytest.mark.slow
@pytest.mark.simulation
def test_a_run_of_a_comparison_sends_the_same_payloads(
    simulated: dict[str, Any], compared: Comparison
) -> None:
    results = compared.tables()[1][0]["results"]
    assert results["payload_digest"] == simulated["payload_digest"]
    assert [row["accuracy"] for row in results["rounds"]] == [
        row["accuracy"] for row in simulated["rounds"]
    ]


@pytest.mark.slow
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
        wait_until(
            lambda: not list(processes_of(killed.home)),
            "the killed comparison's processes end",
        )
        assert len(killed.finished()) == 1
        assert not (killed.out / "table.md").exists()

        output = killed.finish()
        assert "[1/2] split-learning seed 0: started" in output
        assert "splitfc 0.2/0.4 seed 0: started" not in output
        assert killed.finished() == compared.finished()
        assert killed.tables() == compared.tables()
    finally:
        end_processes_of(killed.home)
