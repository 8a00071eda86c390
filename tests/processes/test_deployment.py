"""The example on a SuperLink and three SuperNodes, through faults and with everything encrypted."""

from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
V2 = ROOT / "strategies" / "splitfed-v2.toml"
SETTINGS = {"num-rounds": 3, "num_devices": 3, "codec": "splitfc", "evaluate-every": 3}

pytestmark = pytest.mark.deployment


def test_a_node_that_is_killed_mid_turn_does_not_stop_the_others(deployed_run: Any) -> None:
    def kill() -> None:
        deployed_run.wait_for_log("session opened: .* device=1 round=2 purpose=train")
        deployed_run.signal_node(1)

    settings = {**SETTINGS, "steps-per-turn": 200, "split-reconnect-timeout-s": 5.0}
    results = deployed_run(V2, meanwhile=kill, **settings)
    first, second, third = results["rounds"]
    assert (first["failures"], first["steps"]) == ({}, 600)
    assert second["failures"] == {"1": "disconnected for 5 s"}
    assert 400 <= second["steps"] < 600
    assert third["failures"] in ({}, {"1": "its node is gone"})  # Flower may not know yet, and send it its message
    assert (third["steps"], third["round"]) == (400, 3)
    assert third["accuracy"] > 0.5


def test_with_tls_and_node_authentication_everything_is_encrypted(secure_run: Any) -> None:
    results = secure_run(V2, **SETTINGS, **{"split-host": "0.0.0.0", "split-address": "127.0.0.1"})
    assert [(row["failures"], row["steps"]) for row in results["rounds"]] == [({}, 15)] * 3
    assert "Split endpoint listens on 0.0.0.0:" in results["log"]
    assert "with TLS" in results["log"]
    assert results["rounds"][-1]["uplink_bits_per_entry"] <= 0.2


@pytest.mark.slow
def test_frames_in_messages_need_no_connection_of_their_own(secure_run: Any) -> None:
    """Five to ten seconds a mini-batch: Flower polls, and starts a process for each message."""
    settings = {**SETTINGS, "num-rounds": 1, "evaluate-every": 1, "steps-per-turn": 2}
    by_message = secure_run(V2, **settings, **{"split-transport": "messages"})
    assert [(row["failures"], row["steps"]) for row in by_message["rounds"]] == [({}, 6)]
    assert "Frames travel in Flower's messages" in by_message["log"]
    assert "Split endpoint listens" not in by_message["log"]
