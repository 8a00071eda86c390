"""The example on a SuperLink and three SuperNodes, through faults and with everything encrypted."""

from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
V2 = ROOT / "strategies" / "splitfed-v2.toml"
SETTINGS = {"num-rounds": 3, "num_devices": 3, "codec": "splitfc", "evaluate-every": 3}

pytestmark = pytest.mark.deployment


def devices_of(results: dict[str, Any]) -> list[int]:
    """How many devices trained in each round."""
    return [row["devices"] for row in results["rounds"]]


def test_a_node_that_is_killed_mid_turn_does_not_stop_the_others(deployed_run: Any) -> None:
    def kill() -> None:
        deployed_run.wait_for_log("session opened: .* device=1 round=2 purpose=train")
        deployed_run.signal_node(1)

    results = deployed_run(V2, meanwhile=kill, **SETTINGS, **{"steps-per-turn": 300, "split-reconnect-timeout-s": 5.0})
    assert devices_of(results) == [3, 2, 2]
    assert "Device 1 failed in round 2: disconnected for 5 s" in results["log"]
    assert results["rounds"][-1]["accuracy"] > 0.5
    steps = [row["steps"] for row in results["rounds"]]
    assert steps[0] == 900
    assert 600 <= steps[1] < 900
    assert steps[2] == 600
