"""Steps a second with several mini-batches under way, over links with a delay.

    python benchmarks/pipelining.py
    python benchmarks/pipelining.py --links 10,50,40 --depths 1,4,one-way --codecs splitfc

Device and server are two processes, with the digits model. A link is a proxy in a third
one, which holds bytes back: Mbit/s up, Mbit/s down, milliseconds of a round trip.
Loopback is always measured too. `one-way` is decoupled training: the device half learns
from an auxiliary head, and 16 mini-batches are under way.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import product, repeat
from pathlib import Path
from statistics import median

import torch
from digits import ADAM, batch, halves
from exchange import Speed, in_one_process
from link import DelayedLink
from sessions import SESSION_TIMEOUT_S, WARM_UP_STEPS, trainer
from torch import Tensor
from torch.nn import functional
from written import write_rows

from flwr_splitfc import AuxiliaryHead, DecoupledHalf, cut_codec
from flwr_splitfc.exchange import Session, SharedHalf, SplitEndpoint
from flwr_splitfc.exchange.device.pipeline import LabelledBatches
from flwr_splitfc.exchange.device.stream import Stream
from flwr_splitfc.exchange.protocol.ticket import Ticket

ONE_WAY = "one-way"
ONE_WAY_DEPTH = 16

FEATURE_SHAPE = (32, 6, 6)
CLASSES = 10


@dataclass(frozen=True)
class PipelineRow:
    """A session with so many mini-batches under way.

    Parameters
    ----------
    link : str
        ``up,down,rtt``, or "loopback".
    codec : str
    depth : str
        A number, or "one-way".
    steps_per_second : float
    predicted : float
        What transfers, the round trip and the steps on loopback say: those at the first
        depth, or one-way ones.
    to_first, to_one_process : float
        Ratios of the steps a second, to those of the first depth among others.
    """

    link: str
    codec: str
    depth: str
    steps_per_second: float
    predicted: float
    to_first: float
    to_one_process: float


def run_device(
    ticket: Ticket,
    address: str,
    rows: int,
    steps: int,
    answers: multiprocessing.Queue[Speed],
) -> None:
    """Train in one session; this is the device's process."""
    torch.set_num_threads(1)
    device_half, _ = halves()
    model = DecoupledHalf(device_half, AuxiliaryHead(FEATURE_SHAPE, CLASSES))
    optimizer = ADAM(model.parameters())
    batches = repeat(batch(rows), WARM_UP_STEPS + steps)
    with Session(ticket, Stream(ticket, address)) as session:
        losses = one_way if ticket.decoupled else pipelined
        for number, loss in enumerate(losses(session, model, batches)):
            if number == WARM_UP_STEPS:
                started = time.perf_counter()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        metrics = session.metrics()  # waits for all answers
        seconds = time.perf_counter() - started
    session_bytes = metrics["uplink_bytes"] + metrics["downlink_bytes"]
    answers.put(Speed(steps / seconds, session_bytes / (steps + WARM_UP_STEPS)))


def pipelined(
    session: Session, model: DecoupledHalf, batches: LabelledBatches
) -> Iterator[Tensor]:
    """Yield the losses that the server tells."""
    return session.pipelined(model.device, batches)


def one_way(
    session: Session, model: DecoupledHalf, batches: LabelledBatches
) -> Iterator[Tensor]:
    """Yield the losses of the auxiliary head."""
    for x, y in batches:
        features = model(x)
        session.send(features, y)
        yield functional.cross_entropy(model.auxiliary(features), y)


def measured(
    link: DelayedLink | None, codec: str, depth: str, rows: int, steps: int
) -> Speed:
    """Train in a session; the server is in this process."""
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.Queue()
    endpoint = SplitEndpoint(
        SharedHalf(trainer()),
        cut_codec(codec),
        pipeline_depth=under_way(depth),
        decoupled=depth == ONE_WAY,
    )
    with endpoint, link.to(endpoint.address) if link else nullcontext("") as address:
        ticket = endpoint.issue("train", "0", 1)
        process = spawn.Process(
            target=run_device, args=(ticket, address, rows, steps, answers)
        )
        process.start()
        speed: Speed = answers.get(timeout=SESSION_TIMEOUT_S)
        process.join()
    return speed


def under_way(depth: str) -> int:
    """Return how many mini-batches are under way at once."""
    return ONE_WAY_DEPTH if depth == ONE_WAY else int(depth)


def predicted(link: DelayedLink, depth: str, loopback: Speed) -> float:
    """Return the steps a second that a link allows.

    With one mini-batch under way a step takes all of these, one after another; with
    more of them, the longest, or its share of the sum. On one way all bytes go up, and
    computing was measured with as many under way.
    """
    bits = 8 * loopback.step_bytes
    up_bits = bits if depth == ONE_WAY else bits / 2
    up_s = up_bits / (1e6 * link.up_mbit)
    down_s = (bits - up_bits) / (1e6 * link.down_mbit)
    computing_s = 1 / loopback.steps_per_second
    alone_s = computing_s + up_s + down_s + link.rtt_ms / 1e3
    if under_way(depth) == 1:
        return 1 / alone_s
    least_s = computing_s if depth == ONE_WAY else computing_s / 2
    return 1 / max(alone_s / under_way(depth), up_s, down_s, least_s)


def rows_of(
    links: list[str],
    codecs: list[str],
    depths: list[str],
    rows: int,
    steps: int,
    rounds: int,
) -> Iterator[PipelineRow]:
    """Measure all combinations in turns; results are medians."""
    keys = list(product(["loopback", *links], codecs, depths))
    speeds: dict[tuple[str, str, str], list[Speed]] = {key: [] for key in keys}
    alone: list[float] = []
    for _ in range(rounds):
        alone.append(in_one_process(rows, steps))
        for text, codec, depth in keys:
            link = None if text == "loopback" else DelayedLink.parsed(text)
            # a link's steps are slow, and alike
            count = steps if link is None else max(steps // 4, 1)
            speed = measured(link, codec, depth, rows, count)
            speeds[text, codec, depth].append(speed)
    medians = {
        key: Speed(median(s.steps_per_second for s in own), own[0].step_bytes)
        for key, own in speeds.items()
    }
    for text, codec, depth in keys:
        speed = medians[text, codec, depth].steps_per_second
        alike = ONE_WAY if depth == ONE_WAY else depths[0]
        loopback = medians["loopback", codec, alike]
        expected = speed
        if text != "loopback":
            expected = predicted(DelayedLink.parsed(text), depth, loopback)
        yield PipelineRow(
            text,
            codec,
            depth,
            speed,
            expected,
            speed / medians[text, codec, depths[0]].steps_per_second,
            speed / median(alone),
        )


def table(rows: list[PipelineRow]) -> str:
    """Return the rows below their headings."""
    names = f"{'link':<12} {'codec':<8} {'depth':>7}"
    lines = [f"{names}  steps/s  predicted  to depth {rows[0].depth}  to one process"]
    for row in rows:
        names = f"{row.link:<12} {row.codec:<8} {row.depth:>7}"
        speed = f"{row.steps_per_second:>8.1f} {row.predicted:>10.1f}"
        ratios = f"{row.to_first:>11.2f} {row.to_one_process:>15.2f}"
        lines.append(f"{names} {speed} {ratios}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--links", nargs="*", default=["10,50,40"], metavar="UP,DOWN,RTT"
    )
    parser.add_argument("--depths", type=_names, default=["1", "2", "4", ONE_WAY])
    parser.add_argument("--codecs", type=_names, default=["float32", "splitfc"])
    parser.add_argument("--rows", type=int, default=64, help="samples of a mini-batch")
    parser.add_argument(
        "--steps", type=int, default=300, help="of a session on loopback"
    )
    parser.add_argument("--rounds", type=int, default=3, help="sessions of each kind")
    parser.add_argument("--json", type=Path, help="write the rows there, too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    rows = list(
        rows_of(
            options.links,
            options.codecs,
            options.depths,
            options.rows,
            options.steps,
            options.rounds,
        )
    )
    print(table(rows))
    if options.json:
        write_rows(options.json, rows)


def _names(text: str) -> list[str]:
    return text.split(",")


if __name__ == "__main__":
    main()
