"""Many runs of one app in one simulation: each as in a simulation of its own."""

import json
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict

from flwr_splitfc.compare.flower_app import FlowerApp
from flwr_splitfc.compare.runs import Outcome, RunFolder
from flwr_splitfc.compare.workers.messages import Job
from flwr_splitfc.compare.workers.run_client_app import RUN_KEY, RunClientApp
from flwr_splitfc.compare.workers.simulation import wait_until_ready
from flwr_splitfc.compare.workers.worker import make_run
from tests.local_grid import LocalGrid

NOBODY = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={})


class Simulation:
    """What a worker's simulation is to its runs, in threads of this process."""

    def __init__(self, app: FlowerApp, folder: Path) -> None:
        self.app, self.folder = app, folder
        self.grid = LocalGrid(RunClientApp(app.client_app), num_devices=2)

    def run(self, run_id: str, **settings: Any) -> tuple[Outcome, RunFolder]:
        folder = RunFolder(self.folder / run_id)
        folder.start()
        settings = {key.replace("_", "-"): value for key, value in settings.items()}
        config = {**self.app.defaults, **settings, "results-dir": str(folder.output)}
        job = Job(str(folder.path), config, about={"id": run_id})
        return make_run(self.app.server_app, self.grid, NOBODY, job), folder

    def digest(self, run_id: str, **settings: Any) -> str:
        outcome, folder = self.run(run_id, **settings)
        assert outcome == Outcome("finished")
        results = folder.outcome().results
        assert results is not None
        return str(results["payload_digest"])


@pytest.fixture
def simulation(toy: FlowerApp, tmp_path: Path) -> Simulation:
    return Simulation(toy, tmp_path)


def test_a_run_sends_what_it_would_send_alone(toy: FlowerApp, tmp_path: Path) -> None:
    shared = Simulation(toy, tmp_path / "shared")
    for name, settings in {
        "a": {"seed": 1},
        "b": {"seed": 2},
        "c": {"seed": 1, "uplink_bits": 4.0},
    }.items():
        alone = Simulation(toy, tmp_path / "alone")
        assert shared.digest(name, **settings) == alone.digest(name, **settings)
    assert len({shared.digest(f"{seed}", seed=seed) for seed in (1, 2, 3)}) == 3


def test_what_devices_keep_ends_with_the_run(simulation: Simulation) -> None:
    simulation.run("a", num_rounds=4)
    kept = simulation.grid.contexts[1000]
    assert kept.state.config_records["turns"]["count"] == 2
    assert kept.run_config == {}
    simulation.run("b", num_rounds=2)
    assert kept.state.config_records["turns"]["count"] == 1
    assert kept.state.config_records[RUN_KEY]["id"] == "b"


def test_results_hold_the_traffic_and_the_run(simulation: Simulation) -> None:
    outcome, folder = simulation.run("a", num_rounds=3)
    assert outcome == Outcome("finished")
    results = json.loads((folder.path / "results.json").read_text())
    assert results["run"] == {"id": "a", "turns": 3}
    train = results["traffic"]["train"]
    assert (train["sessions"], train["steps"], train["entries"]) == (3, 3, 3 * 32 * 8)
    sent = sum(train["uplink_bytes"].values()) + sum(train["downlink_bytes"].values())
    assert sent == sum(
        row["uplink_bytes"] + row["downlink_bytes"] for row in results["rounds"]
    )
    assert not (folder.output / "results.json").exists()


def test_a_budget_that_is_too_small_is_no_failure(simulation: Simulation) -> None:
    outcome, folder = simulation.run("a", uplink_bits=0.01)
    assert outcome.state == "impossible"
    folder.end(outcome)
    assert folder.outcome().needs.startswith("needs at least ")
    assert simulation.run("b")[0] == Outcome("finished")


def test_a_device_that_raises_ends_its_run_and_no_other(simulation: Simulation) -> None:
    outcome, folder = simulation.run("a", mood="ill")
    assert outcome.state == "failed"
    told = "DeviceFailed: a device failed: OSError: no data on this device"
    assert outcome.reason == told
    assert not (folder.path / "results.json").exists()
    assert simulation.run("b")[0] == Outcome("finished")


def test_an_app_that_writes_no_results_is_told_so(simulation: Simulation) -> None:
    outcome, _ = simulation.run("a", mood="lazy")
    assert outcome.state == "failed"
    assert "wrote no results.json into its results-dir" in outcome.reason


def test_a_simulation_is_ready_when_every_node_has_answered(
    simulation: Simulation,
) -> None:
    wait_until_ready(simulation.grid, 2)
    assert simulation.grid.trained == []
    assert simulation.grid.contexts[1000].state == RecordDict()
