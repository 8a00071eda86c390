"""Many sessions at once: light devices send the same coded step again and again."""

from __future__ import annotations

import logging
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from statistics import median

import torch
from digits import ADAM, batch, halves
from torch import nn

from flwr_splitfc import cut_codec
from flwr_splitfc.codec import pack_labels
from flwr_splitfc.exchange import HalfTrainer, SharedHalf, SplitEndpoint
from flwr_splitfc.exchange.device.stream import Stream
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.tensors import to_matrix
from flwr_splitfc.exchange.protocol.ticket import Ticket

WARM_UP_STEPS = 10
SESSION_TIMEOUT_S = 300


@dataclass(frozen=True)
class SessionsRow:
    """A server half that trains in so many sessions at once.

    Parameters
    ----------
    codec : str
    sessions : int
        0 is the half alone: `HalfTrainer.step`, and no frames.
    steps_per_second : float
        Of all sessions together.
    ratio : float
        To those of the half alone.
    """

    codec: str
    sessions: int
    steps_per_second: float
    ratio: float


def many_sessions(
    codecs: Sequence[str],
    counts: Sequence[int],
    rows: int,
    steps: int,
    rounds: int,
    merge_steps: int = 1,
) -> list[SessionsRow]:
    """Measure the half alone and in so many sessions, in turns; results are medians.

    Parameters
    ----------
    codecs : sequence of str
    counts : sequence of int
        Of sessions.
    rows : int
        Samples of a mini-batch.
    steps : int
        Of all sessions together.
    rounds : int
    merge_steps : int
        As in `HalfTrainer`.
    """
    # Adam's means of gradients that stay zero become subnormal in 770 steps
    torch.set_flush_denormal(True)
    # each session's connection and end, otherwise
    logging.getLogger("flwr").setLevel(logging.ERROR)
    table = []
    for codec in codecs:
        speeds: dict[int, list[float]] = {count: [] for count in (0, *counts)}
        for _ in range(rounds):
            for count, measured in speeds.items():
                measured.append(
                    in_sessions(codec, count, rows, steps, merge_steps)
                    if count
                    else half_alone(rows, steps)
                )
        alone = median(speeds[0])
        for count, measured in speeds.items():
            speed = median(measured)
            table.append(SessionsRow(codec, count, speed, speed / alone))
    return table


def trainer(merge_steps: int = 1) -> HalfTrainer:
    _, server_half = halves()
    return HalfTrainer(
        server_half, nn.CrossEntropyLoss(), ADAM, device="cpu", merge_steps=merge_steps
    )


def half_alone(rows: int, steps: int) -> float:
    """Train the server half on the same features and labels again and again."""
    device_half, _ = halves()
    images, labels = batch(rows)
    features = device_half(images).detach()
    half = trainer()
    for _ in range(WARM_UP_STEPS):
        half.step(features, labels)
    started = time.perf_counter()
    for _ in range(steps):
        half.step(features, labels)
    return steps / (time.perf_counter() - started)


def in_sessions(
    codec: str, count: int, rows: int, steps: int, merge_steps: int = 1
) -> float:
    """Train the server half in `count` sessions, whose devices are another process."""
    spawn = multiprocessing.get_context("spawn")
    # the devices' process, and this one
    ready, over = spawn.Barrier(2), spawn.Barrier(2)
    steps_each = steps // count
    half = trainer(merge_steps)
    with SplitEndpoint(SharedHalf(half), cut_codec(codec)) as endpoint:
        tickets = [endpoint.issue("train", str(name), 1) for name in range(count)]
        process = spawn.Process(
            target=run_devices,
            args=(tickets, coded_step(codec, rows), steps_each, ready, over),
        )
        process.start()
        ready.wait(SESSION_TIMEOUT_S)
        started = time.perf_counter()
        over.wait(SESSION_TIMEOUT_S)
        seconds = time.perf_counter() - started
        process.join()
    return count * steps_each / seconds


def coded_step(codec: str, rows: int) -> bytes:
    """Return the frame that all devices send."""
    device_half, _ = halves()
    images, labels = batch(rows)
    generator = torch.Generator().manual_seed(0)
    array, link = cut_codec(codec).encode_features(
        device_half(images).detach(), generator=generator
    )
    packed = pack_labels(link.sent_rows(labels))
    step = pb.Step(features=to_matrix(array), labels=packed)
    return pb.DeviceFrame(step=step).SerializeToString()


def run_devices(
    tickets: Sequence[Ticket],
    frame_bytes: bytes,
    steps: int,
    ready: Barrier,
    over: Barrier,
) -> None:
    """Send the frame so often in each session; this is the devices' process."""
    streams = [Stream(ticket) for ticket in tickets]

    def send(stream: Stream, times: int) -> None:
        frame = pb.DeviceFrame.FromString(frame_bytes)
        for _ in range(times):
            stream.ask(frame)

    with ThreadPoolExecutor(len(streams)) as pool:
        list(pool.map(lambda stream: send(stream, WARM_UP_STEPS), streams))
        ready.wait(SESSION_TIMEOUT_S)
        list(pool.map(lambda stream: send(stream, steps), streams))
        over.wait(SESSION_TIMEOUT_S)
    for stream in streams:
        stream.close()
