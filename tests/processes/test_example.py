"""The example app in Flower's simulation engine, started as a user starts it.

The bounds of losses were measured in one process, over ten seeds and two thread counts.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.processes.flwr_run import FlwrRun
from tests.processes.processes import send, wait_for_line

pytestmark = pytest.mark.simulation

ROOT = Path(__file__).parents[2]
DEVICES = 4


# test_same_run has two of these rounds by default
@pytest.mark.slow
def test_splitfc_trains_digits_within_its_budgets(
    flwr_run: Callable[..., dict[str, Any]],
) -> None:
    results = flwr_run(
        ROOT / "strategies" / "splitfc.toml", **{"num-rounds": 12, "evaluate-every": 6}
    )
    rounds = results["rounds"]
    assert [row["round"] for row in rounds] == list(range(1, 13))
    assert all(0.15 < row["uplink_bits_per_entry"] <= 0.2 for row in rounds)
    assert all(0.3 < row["downlink_bits_per_entry"] <= 0.4 for row in rounds)
    assert [row["round"] for row in rounds if row["accuracy"] is not None] == [6, 12]
    assert all(row["steps"] == 5 for row in rounds)
    assert results["run_config"]["reduction"] == 0
    assert "round 12/12 | loss" in results["log"]


@pytest.mark.slow
def test_fedavg_trains_the_same_model(flwr_run: Callable[..., dict[str, Any]]) -> None:
    results = flwr_run(
        ROOT / "strategies" / "fedavg.toml", **{"num-rounds": 3, "evaluate-every": 3}
    )
    rounds = results["rounds"]
    assert len(rounds) == 3
    assert rounds[2]["loss"] < rounds[0]["loss"]  # 0.77 to 0.86
    assert all(row["steps"] == 5 * DEVICES for row in rounds)
    # the same arrays both ways; configs and metrics beside them differ
    up, down = rounds[0]["uplink_bytes"], rounds[0]["downlink_bytes"]
    assert up == pytest.approx(down, rel=0.01)
    assert up > DEVICES * 100_000


@pytest.mark.slow
def test_sampled_devices_share_one_server_half(
    flwr_run: Callable[..., dict[str, Any]],
) -> None:
    settings = {
        "num-rounds": 4,
        "devices": "fedavg",
        "evaluate-every": 2,
        "evaluate-on-devices": True,
    }
    results = flwr_run(
        ROOT / "strategies" / "split-learning.toml",
        at_once=2,
        **settings,
        **{"optimizer-state": "per-device"},
    )
    rounds = results["rounds"]
    assert all(row["steps"] == 5 * DEVICES for row in rounds)
    assert all(row["uplink_bits_per_entry"] == 32 for row in rounds)
    assert rounds[3]["loss"] < rounds[0]["loss"]  # 0.60 to 0.71


@pytest.mark.extended
def test_splitfed_v1_averages_copies(flwr_run: Callable[..., dict[str, Any]]) -> None:
    results = flwr_run(
        ROOT / "strategies" / "splitfed-v1.toml",
        at_once=2,
        **{"num-rounds": 3, "evaluate-every": 3},
    )
    assert results["rounds"][2]["loss"] < results["rounds"][0]["loss"]  # 0.77 to 0.86
    assert all(row["steps"] == 5 * DEVICES for row in results["rounds"])


@pytest.mark.slow
def test_two_hundred_devices_on_one_server_half(
    flwr_run: Callable[..., dict[str, Any]],
) -> None:
    """Every session closes, and memory does not grow with rounds."""
    settings = {
        "fraction-train": 0.5,
        "num-rounds": 6,
        "evaluate-every": 3,
        "partitioner": "iid",
    }
    results = flwr_run(
        ROOT / "strategies" / "splitfed-v2.toml", num_devices=200, at_once=2, **settings
    )
    rounds = results["rounds"]
    assert [row["steps"] for row in rounds] == [5 * 100] * 6
    assert rounds[5]["loss"] < rounds[0]["loss"]
    assert "broke off" not in results["log"]
    assert "refused" not in results["log"]
    assert "cancelled" not in results["log"]
    memory = results["memory"]
    early, most = memory[len(memory) // 3], max(memory)
    print(
        f"ServerApp's process: {early / 2**20:.0f} MiB early on, at most {most / 2**20:.0f} MiB"
    )
    assert most < 1.5 * early


@pytest.mark.extended
def test_a_killed_process_of_the_simulation_ends_the_run_and_leaves_a_model(
    flwr_run: FlwrRun,
) -> None:
    """Flower would hand it three of four devices in each later round."""

    def kill_a_device() -> None:
        wait_for_line(flwr_run.log, "round 2/30")
        actors = flwr_run.actors()
        assert len(actors) == 2
        send(actors[0])

    results = flwr_run(
        ROOT / "strategies" / "splitfed-v2.toml",
        at_once=2,
        meanwhile=kill_a_device,
        **{"num-rounds": 30, "evaluate-every": 30},
    )
    assert results["failed"].startswith("SimulationBroken: a process of the simulation")
    assert len(results["rounds"]) < 30
    assert (results["folder"] / "joined.pt").exists()
