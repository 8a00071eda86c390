"""The quickstart in Flower's simulation engine, started as its README says, on digits."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.processes.flwr_run import RAY_WAS_TOO_SLOW, FlwrRun

pytestmark = [pytest.mark.extended, pytest.mark.simulation]

APP = Path(__file__).parents[2] / "examples" / "quickstart"
# one device at a time: each process of another takes seconds to start
FEDERATION = "num-supernodes=4 init-args-num-cpus=1 client-resources-num-cpus=1"


def run(flwr: FlwrRun, settings: str) -> str:
    """What `flwr run` prints."""
    command = ["flwr", "run", str(APP), "--stream", "--federation-config", FEDERATION]
    command += ["--run-config", f"dataset='digits' num-devices=4 {settings}"]
    done = subprocess.run(
        command, cwd=flwr.elsewhere, env=flwr.env, capture_output=True, text=True
    )
    return done.stdout + done.stderr


def test_one_key_swaps_fedavg_in(tmp_path_factory: pytest.TempPathFactory) -> None:
    flwr = FlwrRun(tmp_path_factory)
    try:
        split = run(flwr, "num-server-rounds=4")
        if RAY_WAS_TOO_SLOW in split:
            split = run(flwr, "num-server-rounds=4")
        whole = run(flwr, "num-server-rounds=2 strategy='fedavg'")
    finally:
        flwr.end()
    line = r"round 4/4 \| loss [\d.]+ \| accuracy [\d.]+%, on devices [\d.]+%"
    assert re.search(line, split), split[-5000:]
    assert "Starting FedAvg strategy" in whole, whole[-5000:]
    assert re.search(r"  2: {'accuracy': '[\d.e+-]+'", whole), whole[-5000:]
