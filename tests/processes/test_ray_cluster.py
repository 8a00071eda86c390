"""The simulation engine on two Ray nodes that share no loopback, without a setting for it."""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes.flwr_run import FlwrRun
from tests.processes.processes import wait_until
from tests.processes.two_machines import ADDRESSES, TwoMachines

pytestmark = [pytest.mark.slow, pytest.mark.simulation]

ROOT = Path(__file__).parents[2]
DEVICES = 6
RAY_PORT = 6379


class ClusterRun(FlwrRun):
    """Runs on a Ray cluster of two machines; ``flwr run`` is called on the first."""

    def __init__(self, folders: pytest.TempPathFactory, machines: TwoMachines) -> None:
        super().__init__(folders)
        self._machines = machines
        self._folders_of_ray: list[str] = []
        self.env["RAY_ADDRESS"] = f"{ADDRESSES[0]}:{RAY_PORT}"
        self.env["FLWR_LOG_LEVEL"] = "DEBUG"
        self._start(0, "--head", "--port", str(RAY_PORT), "--include-dashboard=false")
        self._start(1, "--address", self.env["RAY_ADDRESS"])
        wait_until(lambda: self._nodes() == 2, "a cluster of two nodes")

    def _start(self, index: int, *options: str) -> None:
        """Start the Ray node of a machine, with one CPU."""
        # sockets stand in it, and their paths may have 107 bytes at most
        folder = tempfile.mkdtemp(prefix="ray-")
        self._folders_of_ray.append(folder)
        command = ["ray", "start", "--block", *options, "--num-cpus", "1"]
        command += ["--node-ip-address", ADDRESSES[index]]
        command += ["--object-store-memory", str(10**8), "--temp-dir", folder]
        environment = {**self.env, "RAY_ADDRESS": ""}
        with (self.home / f"ray-{index}.log").open("w") as log:
            subprocess.Popen(
                self._machines.on(index, command),
                env=environment,
                stdout=log,
                stderr=log,
            )

    def end(self) -> None:
        super().end()
        for folder in self._folders_of_ray:
            shutil.rmtree(folder, ignore_errors=True)

    def _nodes(self) -> int:
        command = self._machines.on(0, ["ray", "status"])
        status = subprocess.run(command, env=self.env, capture_output=True, text=True)
        return len(re.findall(r"^ 1 node_", status.stdout, re.MULTILINE))

    def _where(self, num_devices: int, at_once: int) -> list[str]:
        # how many CPUs there are is the cluster's to say
        federation = f"num-supernodes={num_devices} client-resources-num-cpus=1"
        return ["--federation-config", federation]

    def _run(self, command, meanwhile):  # type: ignore[no-untyped-def]
        return super()._run(self._machines.on(0, command), meanwhile)


@pytest.fixture(scope="module")
def cluster_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterRun]:
    try:
        machines = TwoMachines()
    except PermissionError as error:
        pytest.skip(f"network namespaces are not allowed here: {error}")
    run = ClusterRun(tmp_path_factory, machines)
    try:
        yield run
    finally:
        run.end()
        machines.end()


def test_devices_train_on_both_nodes(cluster_run: ClusterRun) -> None:
    results = cluster_run(
        ROOT / "strategies" / "splitfed-v2.toml",
        num_devices=DEVICES,
        **{"num-rounds": 2, "evaluate-every": 2},
    )
    for row in results["rounds"]:
        assert row["steps"] == 5 * DEVICES
        assert not row.get("failures")
    log = results["log"]
    # tickets carry its certificate: without TLS the log would say so
    assert re.search(rf"listens on {ADDRESSES[0]}:\d+ with TLS", log)
    opened = re.findall(r"session opened: .* peer=ipv4:([\d.]+):", log)
    assert set(opened) == set(ADDRESSES)
    assert len(opened) == 2 * DEVICES
