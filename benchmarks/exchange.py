"""The mini-batch steps a second of a session, beside the same loop in one process.

    python benchmarks/exchange.py
    python benchmarks/exchange.py --deployment
    python benchmarks/exchange.py --sessions 1,2,4,8,16 --merge-steps 16
    python benchmarks/exchange.py --profile

The first has device and server in two processes and takes half a minute. The second also
has them on a SuperLink and a SuperNode, which takes a minute and a half more. The third
has one server with so many sessions, and the fourth shows the parts of a step.

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
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from digits import ADAM, EXAMPLE, batch, halves
from sessions import (
    SESSION_TIMEOUT_S,
    WARM_UP_STEPS,
    SessionsRow,
    many_sessions,
    trainer,
)
from step_profile import step_profile
from torch import Tensor, nn
from written import write_rows

from flwr_splitfc import EndpointConfig, cut_codec
from flwr_splitfc.exchange import Session, SharedHalf, SplitEndpoint
from flwr_splitfc.exchange.device.stream import Stream
from flwr_splitfc.exchange.protocol.ticket import Ticket

CODECS = ("float32", "splitfc")

PORT_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Row:
    """One way to train the digits model.

    Parameters
    ----------
    where : str
    codec : str
    tls : bool
    steps_per_second : float
    ratio : float
        To the steps a second in one process.
    step_bytes : float
        Of a step, both ways, everything counted.
    """

    where: str
    codec: str
    tls: bool
    steps_per_second: float
    ratio: float
    step_bytes: float


# One training loop for all


def steps_per_second(steps: int, step: Callable[[], None]) -> float:
    """Take so many steps, after a warm-up that is not counted."""
    for _ in range(WARM_UP_STEPS):
        step()
    started = time.perf_counter()
    for _ in range(steps):
        step()
    return steps / (time.perf_counter() - started)


def train(
    model: nn.Module, loss_fn: Callable[[Tensor, Tensor], Tensor], rows: int, steps: int
) -> float:
    """Train on one mini-batch again and again, and return the steps a second."""
    images, labels = batch(rows)
    optimizer = ADAM(model.parameters())

    def step() -> None:
        optimizer.zero_grad()
        loss_fn(model(images), labels).backward()
        optimizer.step()

    return steps_per_second(steps, step)


def in_one_process(rows: int, steps: int) -> float:
    """Train both halves with both optimizers here, and nothing at the cut."""
    device_half, server_half = halves()
    optimizer = ADAM(server_half.parameters())
    loss_fn = nn.CrossEntropyLoss()

    def loss(features: Tensor, labels: Tensor) -> Tensor:
        optimizer.zero_grad()
        cut = features.detach().requires_grad_()
        value = loss_fn(server_half(cut), labels)
        value.backward()
        optimizer.step()
        assert cut.grad is not None  # `backward` has set it
        # the gradient of this by the features is the one that came back
        return (features * cut.grad).sum()

    return train(device_half, loss, rows, steps)


# Two processes


@dataclass(frozen=True)
class Speed:
    """The steps a second of a session, and the bytes of a step."""

    steps_per_second: float
    step_bytes: float


def run_device(
    ticket: Ticket, rows: int, steps: int, answers: multiprocessing.Queue[Speed]
) -> None:
    """Train in one session; this is the other process."""
    torch.set_num_threads(1)
    device_half, _ = halves()
    with Session(ticket, Stream(ticket)) as session:
        speed = train(device_half, session.loss, rows, steps)
        metrics = session.metrics()
    session_bytes = metrics["uplink_bytes"] + metrics["downlink_bytes"]
    answers.put(Speed(speed, session_bytes / (steps + WARM_UP_STEPS)))


def in_two_processes(codec: str, tls: bool, rows: int, steps: int) -> Speed:
    """Train in a session over loopback; the server is in this process."""
    config = EndpointConfig(tls=tls)
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.Queue()
    with SplitEndpoint(
        SharedHalf(trainer()), cut_codec(codec), config=config
    ) as endpoint:
        ticket = endpoint.issue("train", "0", 1)
        process = spawn.Process(target=run_device, args=(ticket, rows, steps, answers))
        process.start()
        speed: Speed = answers.get(timeout=SESSION_TIMEOUT_S)
        process.join()
    return speed


def two_processes(rows: int, steps: int, rounds: int) -> Iterator[Row]:
    """Measure one process and two, with and without codec and TLS.

    All variants take turns, and each comes right after one process, to which its ratio
    is: a noisy machine slows both. Results are medians.
    """
    variants = [(codec, tls) for codec in CODECS for tls in (False, True)]
    alone: list[float] = []
    measured: dict[tuple[str, bool], list[Speed]] = {key: [] for key in variants}
    ratios: dict[tuple[str, bool], list[float]] = {key: [] for key in variants}
    for _ in range(rounds):
        for codec, tls in variants:
            alone.append(in_one_process(rows, steps))
            speed = in_two_processes(codec, tls, rows, steps)
            measured[codec, tls].append(speed)
            ratios[codec, tls].append(speed.steps_per_second / alone[-1])
    alone_speed = median(alone)
    yield Row(
        where="one process",
        codec="-",
        tls=False,
        steps_per_second=alone_speed,
        ratio=1.0,
        step_bytes=0.0,
    )
    for (codec, tls), speeds in measured.items():
        yield Row(
            where="two processes",
            codec=codec,
            tls=tls,
            steps_per_second=median(own.steps_per_second for own in speeds),
            ratio=median(ratios[codec, tls]),
            step_bytes=speeds[0].step_bytes,
        )


# SuperLink and SuperNode


def deployed(rows: int, steps: int, alone: float) -> Iterator[Row]:
    """Measure the example's second turn on a SuperNode, by the server's own log.

    Parameters
    ----------
    rows, steps : int
        Of a mini-batch, and of a turn.
    alone : float
        The steps a second in one process.
    """
    with (
        tempfile.TemporaryDirectory() as name,
        started_flower(Path(name)) as environment,
    ):
        folder = Path(name)
        for codec in CODECS:
            for tls in (False, True):
                config = write_run_config(folder, codec, tls, rows, steps)
                log = run_example(config, environment)
                speed = session_speed(log)
                yield Row(
                    where="SuperLink",
                    codec=codec,
                    tls=tls,
                    steps_per_second=speed.steps_per_second,
                    ratio=speed.steps_per_second / alone,
                    step_bytes=speed.step_bytes,
                )


def write_run_config(
    folder: Path, codec: str, tls: bool, rows: int, steps: int
) -> Path:
    """Write the run-config of two turns of one device."""
    settings = {
        "strategy": "split-learning",
        "codec": codec,
        "split-tls": "on" if tls else "off",
        "num-rounds": 2,
        "num-devices": 1,
        "steps-per-turn": steps,
        "batch-size": rows,
        "results-dir": str(folder),
    }
    # TOML writes strings and whole numbers as JSON does
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in settings.items()]
    config = folder / "run.toml"
    config.write_text("".join(lines))
    return config


def run_example(config: Path, environment: dict[str, str]) -> str:
    """Run the example, and return what was logged."""
    command = ["flwr", "run", str(EXAMPLE), "benchmark"]
    ran = subprocess.run(
        [*command, "--stream", "--run-config", str(config)],
        env=environment,
        cwd=config.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return ran.stdout + ran.stderr


def session_speed(log: str) -> Speed:
    """Read the last session of a log, from opened to closed."""
    pattern = r"closed: .*steps=(\d+) seconds=([\d.]+) up_bytes=(\d+) down_bytes=(\d+)"
    sessions = re.findall(pattern, log)
    if not sessions:
        raise SystemExit(f"the run failed:\n{log[-3000:]}")
    steps, seconds, up_bytes, down_bytes = map(float, sessions[-1])
    return Speed(steps / seconds, (up_bytes + down_bytes) / steps)


@contextlib.contextmanager
def started_flower(folder: Path) -> Iterator[dict[str, str]]:
    """Start a SuperLink and a SuperNode of our own, and end them afterwards.

    Yields the environment in which ``flwr`` finds them.
    """
    link_port = free_port()
    node_port = free_port()
    write_flower_config(folder, link_port)
    environment = {
        **os.environ,
        "FLWR_HOME": str(folder),
        "FLWR_LOG_LEVEL": "DEBUG",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    }
    link = ["flower-superlink", "--insecure", "--host", "127.0.0.1"]
    link += ["--port", str(link_port)]
    node = ["flower-supernode", "--insecure", "--port", str(node_port)]
    node += ["--superlink", f"127.0.0.1:{link_port}"]
    node += ["--node-config", "partition-id=0 num-partitions=1"]
    started: list[subprocess.Popen[bytes]] = []
    with (folder / "flower.log").open("wb") as log:
        try:
            for command in (link, node):
                process = subprocess.Popen(
                    command,
                    env=environment,
                    cwd=folder,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
                started.append(process)
                wait_for(link_port)
            yield environment
        finally:
            for process in started:
                # and what it has started itself
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


def write_flower_config(folder: Path, link_port: int) -> None:
    """Write where ``flwr run`` finds the SuperLink."""
    lines = [
        "[superlink]",
        'default = "benchmark"',
        "",
        "[superlink.benchmark]",
        f'address = "127.0.0.1:{link_port}"',
        "insecure = true",
        "",
    ]
    (folder / "config.toml").write_text("\n".join(lines))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int) -> None:
    """Wait until somebody listens on a port."""
    deadline = time.monotonic() + PORT_TIMEOUT_S
    while time.monotonic() < deadline:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", port), timeout=1),
        ):
            return
        time.sleep(0.2)
    raise SystemExit(f"nothing listens on port {port}")


# The command


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--deployment", action="store_true", help="also on a SuperLink and a SuperNode"
    )
    parser.add_argument(
        "--sessions",
        type=lambda text: [int(count) for count in text.split(",")],
        metavar="N,N,...",
        help="instead: one server with so many sessions at once, e.g. 1,2,4,8,16",
    )
    parser.add_argument(
        "--merge-steps",
        type=int,
        default=1,
        help="with --sessions: mini-batches that make one step",
    )
    parser.add_argument(
        "--profile",
        action="store_true",
        help="instead: the parts of a step on the server, without a network",
    )
    parser.add_argument("--rows", type=int, default=64, help="samples of a mini-batch")
    parser.add_argument("--steps", type=int, default=300, help="of a session")
    parser.add_argument("--rounds", type=int, default=3, help="sessions of each kind")
    parser.add_argument("--json", type=Path, help="write the rows there, too")
    return parser.parse_args()


def table(rows: Sequence[Row]) -> str:
    """Return the rows below their headings."""
    lines = [f"{'where':<14} {'codec':<8} TLS   steps/s  ratio  kB/step"]
    for row in rows:
        tls = "on" if row.tls else "off"
        names = f"{row.where:<14} {row.codec:<8} {tls:<4}"
        speed = f"{row.steps_per_second:>8.1f} {row.ratio:>6.2f}"
        step_kb = row.step_bytes / 1e3
        lines.append(f"{names} {speed} {step_kb:>8.1f}")
    return "\n".join(lines)


def sessions_table(rows: Sequence[SessionsRow]) -> str:
    """Return the rows below their headings."""
    lines = ["codec    sessions  steps/s  ratio"]
    for row in rows:
        sessions = row.sessions or "-"
        speed = f"{row.steps_per_second:>8.1f} {row.ratio:>6.2f}"
        lines.append(f"{row.codec:<8} {sessions:>8} {speed}")
    return "\n".join(lines)


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    if options.profile:
        for codec in CODECS:
            print(step_profile(codec, options.rows, options.steps))
        return
    rows: list[Row] | list[SessionsRow]
    if options.sessions:
        rows = many_sessions(
            CODECS,
            options.sessions,
            options.rows,
            options.steps,
            options.rounds,
            options.merge_steps,
        )
        print(sessions_table(rows))
    else:
        rows = list(two_processes(options.rows, options.steps, options.rounds))
        if options.deployment:
            alone = rows[0].steps_per_second
            rows += deployed(options.rows, options.steps, alone)
        print(table(rows))
    if options.json:
        write_rows(options.json, rows)


if __name__ == "__main__":
    main()
