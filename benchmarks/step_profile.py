"""The parts of a step on the server, from a frame's bytes to those of its answer."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from statistics import median
from typing import Any
from unittest import mock

import torch
from sessions import WARM_UP_STEPS, coded_step, trainer

from flwr_splitfc import cut_codec
from flwr_splitfc.exchange import SharedHalf
from flwr_splitfc.exchange.protocol import frame_bytes
from flwr_splitfc.exchange.server.accounts.frame_traffic import count_uplink
from flwr_splitfc.exchange.server.accounts.payload_digest import PayloadDigest
from flwr_splitfc.exchange.server.half import half_passes, half_trainer, half_updater
from flwr_splitfc.exchange.server.half.half_guard import HalfGuard
from flwr_splitfc.exchange.server.half.half_passes import HalfPasses
from flwr_splitfc.exchange.server.half.half_updater import HalfUpdater
from flwr_splitfc.exchange.server.half.step_undo import StepUndo
from flwr_splitfc.exchange.server.turn import turn
from flwr_splitfc.exchange.server.turn.device_states import DeviceStates
from flwr_splitfc.exchange.server.turn.limits import Limits

# where each part stands in the code, and what it is called here
PARTS: tuple[tuple[Any, str, str], ...] = (
    (turn, "decode_features", "decode the features"),
    (turn, "decode_labels", "decode the labels"),
    (HalfPasses, "run", "forward pass"),
    (half_trainer, "loss_of", "loss"),
    (torch.autograd, "grad", "backward pass"),
    (half_passes, "check_finite", "check the gradients"),
    (half_updater, "check_finite", "check the gradients"),
    (turn.Turn, "_encode_gradients", "encode the gradient"),
    (StepUndo, "save_weights", "copy the weights, to go back to"),
    (HalfUpdater, "_apply", "optimizer"),
    (HalfGuard, "check_weights", "check the weights"),
    (PayloadDigest, "catch_up", "digest"),
)


def step_profile(codec: str, rows: int, steps: int) -> str:
    """Return a table of where the CPU time of a step goes, in ms; medians.

    What follows the answer is what the device does not wait for.
    """
    data = coded_step(codec, rows)
    the_turn = turn.Turn(
        "train",
        "0",
        1,
        SharedHalf(trainer()),
        cut_codec(codec),
        DeviceStates("per-device"),
        Limits(),
    )
    the_turn.open()
    seconds: dict[str, list[float]] = defaultdict(list)

    def timed(name: str, part: Callable[..., Any]) -> Callable[..., Any]:
        def timing(*arguments: Any, **options: Any) -> Any:
            started = time.thread_time()
            result = part(*arguments, **options)
            seconds[name].append(time.thread_time() - started)
            return result

        return timing

    def answer() -> bytes:
        frame = frame_bytes.parse_frame(data)
        reply = the_turn.answer(frame)
        count_uplink(the_turn.traffic, frame, the_turn.moved.uplink)
        return reply.SerializeToString()

    def finish() -> None:
        the_turn.finish()
        the_turn.digest.catch_up()

    with ExitStack() as patches:
        for owner, attribute, name in PARTS:
            part = timed(name, getattr(owner, attribute))
            patches.enter_context(mock.patch.object(owner, attribute, part))
        whole = timed("until the answer", answer)
        rest = timed("after the answer", finish)
        for _ in range(WARM_UP_STEPS + steps):
            whole()
            rest()
    lines = [f"{codec}: a step on the server, CPU ms"]
    for name, measured in seconds.items():
        lines.append(f"{1e3 * median(measured):8.3f}  {name}")
    return "\n".join(lines)
