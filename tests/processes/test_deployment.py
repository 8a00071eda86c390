"""The example on a SuperLink with SuperNodes: one is killed, or everything is encrypted."""

from pathlib import Path
from typing import Any

import pytest

from tests.processes.flwr_run import Deployment
from tests.processes.processes import wait_for_line

ROOT = Path(__file__).parents[2]
V2 = ROOT / "strategies" / "splitfed-v2.toml"

pytestmark = [pytest.mark.deployment, pytest.mark.extended]


@pytest.mark.parametrize("deployed_run", [3], indirect=True)
def test_a_node_that_is_killed_mid_turn_does_not_stop_the_others(
    deployed_run: Deployment,
) -> None:
    def kill() -> None:
        opened = "session opened: .* device=1 round=2 purpose=train"
        wait_for_line(deployed_run.log, opened)
        deployed_run.kill_node(1)

    settings = {
        "codec": "splitfc",
        "num-rounds": 3,
        "num_devices": 3,
        "evaluate-every": 3,
        "steps-per-turn": 200,
        "split-reconnect-timeout-s": 5.0,
        "partitioner": "iid",
    }
    results = deployed_run(V2, meanwhile=kill, **settings)
    first, second, third = results["rounds"]
    assert (first["failures"], first["steps"]) == ({}, 600)
    assert second["failures"] == {"1": "disconnected for 5 s"}
    assert 400 <= second["steps"] < 600
    # Flower may not know yet, and send it its message
    assert third["failures"].keys() <= {"1"}
    for why in third["failures"].values():
        assert "its node is gone" in why or "Node Unavailable" in why
    assert (third["steps"], third["round"]) == (400, 3)
    # the others have all classes; 0.96 to 0.99 over four seeds in one process
    assert third["accuracy"] > 0.8


@pytest.fixture(scope="module")
def encrypted(secure_run: Deployment) -> dict[str, Any]:
    settings = {
        "codec": "splitfc",
        "num-rounds": 2,
        "num_devices": 2,
        "evaluate-every": 2,
        "downlink-schedule": "warmup 2x 1",
        "split-host": "0.0.0.0",
        "split-address": "127.0.0.1",
    }
    results: dict[str, Any] = secure_run(V2, **settings)
    return results


def test_with_tls_and_node_authentication_everything_is_encrypted(
    encrypted: dict[str, Any],
) -> None:
    assert [(row["failures"], row["steps"]) for row in encrypted["rounds"]] == [
        ({}, 10)
    ] * 2
    assert "Split endpoint listens on 0.0.0.0:" in encrypted["log"]
    assert "with TLS" in encrypted["log"]


def test_each_node_meets_the_budget_of_its_node_config(
    encrypted: dict[str, Any],
) -> None:
    for device, uplink_bits in {"0": 0.1, "1": 0.8}.items():
        assert (
            0.9 * uplink_bits
            < encrypted["devices"][device]["uplink_bits_per_entry"]
            <= uplink_bits
        )
    assert encrypted["devices"].keys() == {"0", "1"}
    for row, downlink_bits in zip(encrypted["rounds"], (0.8, 0.4), strict=True):
        assert 0.9 * downlink_bits < row["downlink_bits_per_entry"] <= downlink_bits


@pytest.mark.slow
def test_frames_in_messages_need_no_connection_of_their_own(
    secure_run: Deployment,
) -> None:
    """Five to ten seconds a mini-batch: Flower polls, and starts a process for each message."""
    settings = {
        "codec": "splitfc",
        "num-rounds": 1,
        "num_devices": 2,
        "evaluate-every": 1,
        "steps-per-turn": 2,
    }
    by_message = secure_run(V2, **settings, **{"split-transport": "messages"})
    assert [(row["failures"], row["steps"]) for row in by_message["rounds"]] == [
        ({}, 4)
    ]
    assert "Frames travel in Flower's messages" in by_message["log"]
    assert "Split endpoint listens" not in by_message["log"]
