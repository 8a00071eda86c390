"""How many mini-batch steps a second a session takes, beside the same loop in one process.

    python benchmarks/exchange.py                 # device and server in two processes, half a minute
    python benchmarks/exchange.py --deployment    # and on a SuperLink and a SuperNode, a minute and a half more

`benchmarks/README.md` says what the columns mean.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from flwr_splitfc import EndpointConfig, cut_codec
from flwr_splitfc.exchange import HalfTrainer, Session, SharedHalf, SplitEndpoint
from flwr_splitfc.exchange.device.stream import Stream
from flwr_splitfc.exchange.protocol.ticket import Ticket

EXAMPLE = Path(__file__).parents[1] / "examples" / "mnist"
CODECS, ADAM = ("float32", "splitfc"), partial(torch.optim.Adam, lr=1e-3)
WARM_UP = 10


@dataclass(frozen=True)
class Row:
    """One way to train the digits model; bytes are of a step, both ways, all included."""

    where: str
    codec: str
    tls: bool
    steps_per_second: float
    ratio: float
    step_bytes: float


def halves() -> tuple[nn.Module, nn.Module]:
    """The digits model of the example, cut at 32 x 6 x 6."""
    sys.path.insert(0, str(EXAMPLE))
    from splitmnist.task import DeviceHalf, ServerHalf

    torch.manual_seed(0)
    return DeviceHalf(1, 8), ServerHalf(8, 10)


def batch(rows: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.rand(rows, 1, 8, 8, generator=draw), torch.randint(
        10, (rows,), generator=draw
    )


def timed(steps: int, step: Callable[[], None]) -> float:
    """Steps a second, after a warm-up."""
    for _ in range(WARM_UP):
        step()
    started = time.perf_counter()
    for _ in range(steps):
        step()
    return steps / (time.perf_counter() - started)


def train(
    model: nn.Module, loss_fn: Callable[[Tensor, Tensor], Tensor], rows: int, steps: int
) -> float:
    (x, y), optimizer = batch(rows), ADAM(model.parameters())

    def step() -> None:
        optimizer.zero_grad()
        loss_fn(model(x), y).backward()
        optimizer.step()

    return timed(steps, step)


def in_one_process(rows: int, steps: int) -> float:
    """Both halves and both optimizers here, and nothing at the cut."""
    device_half, server_half = halves()
    optimizer, loss_fn = ADAM(server_half.parameters()), nn.CrossEntropyLoss()

    def loss(features: Tensor, labels: Tensor) -> Tensor:
        optimizer.zero_grad()
        cut = features.detach().requires_grad_()
        value = loss_fn(server_half(cut), labels)
        value.backward()
        optimizer.step()
        # its gradient by the features is the one that came back
        return (features * cut.grad).sum()

    return train(device_half, loss, rows, steps)


def device(
    ticket: Ticket,
    rows: int,
    steps: int,
    answers: multiprocessing.Queue[tuple[float, float]],
) -> None:
    """The other process: one session."""
    torch.set_num_threads(1)
    with Session(ticket, Stream(ticket)) as session:
        speed = train(halves()[0], session.loss, rows, steps)
        metrics = session.metrics()
    answers.put(
        (
            speed,
            (metrics["uplink_bytes"] + metrics["downlink_bytes"]) / (steps + WARM_UP),
        )
    )


def in_two_processes(
    codec: str, tls: bool, rows: int, steps: int
) -> tuple[float, float]:
    """A session over loopback; steps a second, and bytes of a step."""
    half = HalfTrainer(halves()[1], nn.CrossEntropyLoss(), ADAM, device="cpu")
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.Queue()
    with SplitEndpoint(
        SharedHalf(half), cut_codec(codec), config=EndpointConfig(tls=tls)
    ) as endpoint:
        process = spawn.Process(
            target=device, args=(endpoint.issue("train", "0", 1), rows, steps, answers)
        )
        process.start()
        measured = answers.get(timeout=300)
        process.join()
    return measured


def two_processes(rows: int, steps: int, rounds: int) -> Iterator[Row]:
    """All variants take turns, so that a noisy machine slows all of them; medians."""
    variants = [(codec, tls) for codec in CODECS for tls in (False, True)]
    alone, measured = [], {variant: [] for variant in variants}
    for _ in range(rounds):
        alone.append(in_one_process(rows, steps))
        for variant in variants:
            measured[variant].append(in_two_processes(*variant, rows, steps))
    yield Row("one process", "-", False, median(alone), 1.0, 0.0)
    for (codec, tls), results in measured.items():
        speed = median(speed for speed, _ in results)
        yield Row(
            "two processes", codec, tls, speed, speed / median(alone), results[0][1]
        )


# -- SuperLink and SuperNode -----------------------------------------------------------
# --------------------------------


def deployed(rows: int, steps: int, alone: float) -> Iterator[Row]:
    """The example's second turn on a SuperNode, by the server's own log: from session opened to closed."""
    with (
        tempfile.TemporaryDirectory() as folder,
        started_flower(Path(folder)) as environment,
    ):
        for codec in CODECS:
            for tls in ("off", "on"):
                config = Path(folder) / "run.toml"
                settings = {
                    "strategy": "split-learning",
                    "codec": codec,
                    "split-tls": tls,
                    "num-rounds": 2,
                }
                settings |= {
                    "num-devices": 1,
                    "steps-per-turn": steps,
                    "batch-size": rows,
                    "results-dir": folder,
                }
                config.write_text(
                    "".join(
                        f"{key} = {json.dumps(value)}\n"
                        for key, value in settings.items()
                    )
                )
                command = [
                    "flwr",
                    "run",
                    str(EXAMPLE),
                    "benchmark",
                    "--stream",
                    "--run-config",
                    str(config),
                ]
                ran = subprocess.run(
                    command,
                    env=environment,
                    cwd=folder,
                    capture_output=True,
                    text=True,
                    check=False,
                )
                log = ran.stdout + ran.stderr
                closed = re.findall(
                    r"closed: .*steps=(\d+) seconds=([\d.]+) up_bytes=(\d+) down_bytes=(\d+)",
                    log,
                )
                if not closed:
                    raise SystemExit(f"the run failed:\n{log[-3000:]}")
                taken, seconds, up, down = (float(number) for number in closed[-1])
                speed = taken / seconds
                yield Row(
                    "SuperLink",
                    codec,
                    tls == "on",
                    speed,
                    speed / alone,
                    (up + down) / taken,
                )


@contextlib.contextmanager
def started_flower(folder: Path) -> Iterator[dict[str, str]]:
    """A SuperLink and a SuperNode of our own, ended afterwards."""
    ports = [free_port() for _ in range(2)]
    link = f'[superlink]\ndefault = "benchmark"\n\n[superlink.benchmark]\naddress = "127.0.0.1:{ports[0]}"\n'
    (folder / "config.toml").write_text(link + "insecure = true\n")
    environment = os.environ | {"FLWR_HOME": str(folder), "FLWR_LOG_LEVEL": "DEBUG"}
    environment |= {"FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1"}
    server = [
        "flower-superlink",
        "--insecure",
        "--host",
        "127.0.0.1",
        "--port",
        str(ports[0]),
    ]
    node = [
        "flower-supernode",
        "--insecure",
        "--superlink",
        f"127.0.0.1:{ports[0]}",
        "--port",
        str(ports[1]),
    ]
    with (folder / "flower.log").open("w") as log:
        started = []
        try:
            for command in (
                server,
                [*node, "--node-config", "partition-id=0 num-partitions=1"],
            ):
                options = {
                    "env": environment,
                    "cwd": folder,
                    "stdout": log,
                    "stderr": log,
                    "start_new_session": True,
                }
                started.append(subprocess.Popen(command, **options))
                wait_for(ports[0])
            yield environment
        finally:
            for process in started:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", port), timeout=1),
        ):
            return
        time.sleep(0.2)
    raise SystemExit(f"nothing listens on port {port}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--deployment", action="store_true", help="also on a SuperLink and a SuperNode"
    )
    parser.add_argument("--rows", type=int, default=64, help="samples of a mini-batch")
    parser.add_argument("--steps", type=int, default=300, help="of a session")
    parser.add_argument("--rounds", type=int, default=3, help="sessions of each kind")
    parser.add_argument("--json", type=Path, help="write the rows there, too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = list(two_processes(options.rows, options.steps, options.rounds))
    if options.deployment:
        rows += deployed(options.rows, options.steps, rows[0].steps_per_second)
    print(
        f"{'where':<14} {'codec':<8} {'TLS':<4} {'steps/s':>8} {'ratio':>6} {'kB/step':>8}"
    )
    for row in rows:
        tls = "on" if row.tls else "off"
        line = f"{row.where:<14} {row.codec:<8} {tls:<4} {row.steps_per_second:>8.1f} {row.ratio:>6.2f}"
        print(f"{line} {row.step_bytes / 1e3:>8.1f}")
    if options.json:
        options.json.write_text(
            json.dumps({"rows": [asdict(row) for row in rows]}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
