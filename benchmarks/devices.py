"""What a run takes as the devices become more, while each round has as many as before.

    python benchmarks/devices.py --devices 100,1000,10000
    python benchmarks/devices.py --devices 100,1000 --in-turn

Each is a `flwr run` in the simulation engine on the digits, with two steps a turn and 50
devices sampled a round, or one device a round. `docs/scale.md` says what came out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from exchange import EXAMPLE, free_port
from written import write_rows

SAMPLED = 50
BENCHMARKS = Path(__file__).parent
RUN_TIMEOUT_S = 1800


@dataclass(frozen=True)
class DevicesRow:
    """A run with so many devices.

    Parameters
    ----------
    devices : int
    turns : int
        That came, in all rounds.
    start_s : float
        From the command to the end of the first round.
    round_s : float
        The median of the later rounds.
    memory_mb : float
        Of the process with the ServerApp, Flower's engine and Ray's driver, at most.
    results_kb, checkpoint_kb : float
        The sizes of ``results.json`` and of the checkpoint.
    log_lines : int
    """

    devices: int
    turns: int
    start_s: float
    round_s: float
    memory_mb: float
    results_kb: float
    checkpoint_kb: float
    log_lines: int


def measured(devices: int, rounds: int, *, in_turn: bool) -> DevicesRow:
    """Make a run, and measure it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = run_settings(folder, devices, rounds, in_turn=in_turn)
        lines = [f"{key} = {json.dumps(value)}\n" for key, value in settings.items()]
        config = folder / "run.toml"
        config.write_text("".join(lines))
        log = folder / "log.txt"
        started = time.time()
        memory_mb = run(folder, config, devices, log)
        results = folder / "results.json"
        if not results.exists():
            raise SystemExit(f"the run failed:\n{log.read_text()[-3000:]}")
        written = json.loads(results.read_text())
        seconds = [row["seconds"] for row in written["rounds"]]
        run_s = results.stat().st_mtime - started
        return DevicesRow(
            devices=devices,
            turns=sum(row["steps"] for row in written["rounds"]) // 2,
            start_s=run_s - sum(seconds[1:]),
            round_s=median(seconds[1:]),
            memory_mb=memory_mb,
            results_kb=results.stat().st_size / 1e3,
            checkpoint_kb=folder_kb(folder / "checkpoint"),
            log_lines=len(log.read_text().splitlines()),
        )


def run_settings(
    folder: Path, devices: int, rounds: int, *, in_turn: bool
) -> dict[str, object]:
    """Return the run-config."""
    return {
        "strategy": "split-learning" if in_turn else "splitfed-v2",
        "devices": "round-robin" if in_turn else "fedavg",
        "fraction-train": SAMPLED / devices,
        "optimizer-state": "relay" if in_turn else "per-device",
        "num-devices": devices,
        "num-rounds": rounds,
        "steps-per-turn": 2,
        "batch-size": 8,
        "evaluate-every": rounds,
        "dataset": "many_digits.ManyDigits",
        "data-dir": str(folder),
        "partitioner": "iid",
        "results-dir": str(folder),
        "checkpoint-dir": str(folder / "checkpoint"),
    }


def run(folder: Path, config: Path, devices: int, log: Path) -> float:
    """Run to the end with a SuperLink of its own; return the most memory in MB."""
    environment = {
        **os.environ,
        "FLWR_HOME": str(folder),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(free_port()),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "PYTHONPATH": os.pathsep.join(
            [str(BENCHMARKS), os.environ.get("PYTHONPATH", "")]
        ),
        "RAY_ADDRESS": "local",
    }
    federation = f"num-supernodes={devices} client-resources-num-cpus=1"
    command = ["flwr", "run", str(EXAMPLE), "--stream", "--run-config", str(config)]
    most_kb = 0
    try:
        with log.open("w") as output:
            process = subprocess.Popen(
                [*command, "--federation-config", federation],
                env=environment,
                cwd=folder,
                stdout=output,
                stderr=output,
            )
            deadline = time.monotonic() + RUN_TIMEOUT_S
            while process.poll() is None and time.monotonic() < deadline:
                memories_kb = map(memory_kb, processes(folder))
                most_kb = max(most_kb, *memories_kb, 0)
                time.sleep(0.5)
    finally:
        for pid in (process.pid, *processes(folder, every=True)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    return most_kb / 1e3


def processes(folder: Path, *, every: bool = False) -> list[int]:
    """Return the processes of a run: that of the ServerApp, or every one."""
    wanted = f"FLWR_HOME={folder}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            is_its = wanted in (process / "environ").read_bytes().split(b"\0")
            holds_app = b"flwr-simulation" in (process / "cmdline").read_bytes()
            if is_its and (every or holds_app):
                found.append(int(process.name))
    return found


def memory_kb(pid: int) -> int:
    """Return the resident memory of a process; 0 if it is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
    return 0


def folder_kb(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*")) / 1e3


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--devices",
        type=lambda text: [int(count) for count in text.split(",")],
        default=[100, 1000],
        metavar="N,N,...",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--in-turn", action="store_true", help="one device a round")
    parser.add_argument("--json", type=Path, help="write the rows there, too")
    return parser.parse_args()


def table(rows: Sequence[DevicesRow]) -> str:
    """Return the rows below their headings."""
    heading = "devices  turns  start s  round s  memory MB"
    lines = [heading + "  results kB  checkpoint kB  log lines"]
    for row in rows:
        times = f"{row.start_s:>8.1f} {row.round_s:>8.2f}"
        sizes = f"{row.results_kb:>11.1f} {row.checkpoint_kb:>14.1f}"
        counts = f"{row.devices:>7} {row.turns:>6}"
        lines.append(
            f"{counts} {times} {row.memory_mb:>10.0f} {sizes} {row.log_lines:>10}"
        )
    return "\n".join(lines)


def main() -> None:
    options = arguments()
    rows = []
    for devices in options.devices:
        rows.append(measured(devices, options.rounds, in_turn=options.in_turn))
        print(table(rows), flush=True)
    if options.json:
        write_rows(options.json, rows)


if __name__ == "__main__":
    main()
