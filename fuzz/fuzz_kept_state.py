"""Coverage-guided fuzzing of what a device leaves for the next. In the repository's root, after ``pip install atheris``:

    python -m fuzz.fuzz_kept_state -max_total_time=300

An input decides on a device's optimizer and on changes of the Close frame with its
state. The frame goes through `Turn.answer`, what is kept through a checkpoint's form,
and the next device starts from it and takes a step. Other errors than a `SplitError` on
the server, and any on the next device, are reported as a crash; so are parameters of
that device that are not finite. Other options are libFuzzer's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from fuzz.choices import Choices
from fuzz.fuzzing import fuzz, instrumented, watched_log
from fuzz.mutations import change_message, changed_bytes

with instrumented("flwr_splitfc.exchange"):
    import torch
    from torch import nn

    from flwr_splitfc import Limits
    from flwr_splitfc.exchange import DeviceStates, HalfTrainer, SharedHalf, SplitError
    from flwr_splitfc.exchange.device.optimizer_state import (
        optimizer_tensors,
        start_from_kept,
    )
    from flwr_splitfc.exchange.protocol import split_pb2 as pb
    from flwr_splitfc.exchange.protocol.frame_bytes import parse_frame
    from flwr_splitfc.exchange.protocol.tensors import pack_tensor, pack_tensors
    from flwr_splitfc.exchange.server.turn.turn import Turn
    from fuzz.valid_frames import WIRES

OptimizerFn = Callable[..., torch.optim.Optimizer]

LIMITS = Limits(max_state_bytes=2**16)
OPTIMIZERS: list[OptimizerFn] = [
    partial(torch.optim.Adam, lr=1e-2),
    partial(torch.optim.Adam, lr=1e-2, amsgrad=True),
    partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    partial(torch.optim.RMSprop, lr=1e-2, momentum=0.9, centered=True),
    partial(torch.optim.Adagrad, lr=1e-2),
    partial(torch.optim.NAdam, lr=1e-2),
]


def device_half() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))


HALF = [tuple(entry.shape) for entry in device_half().state_dict().values()]
SERVER_HALF = HalfTrainer(nn.Linear(16, 4), nn.CrossEntropyLoss(), OPTIMIZERS[0])


def take_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    x = torch.linspace(-1.0, 1.0, 12).reshape(4, 3)
    model(x).square().mean().backward()
    optimizer.step()


def close_after_a_step(make: OptimizerFn) -> pb.DeviceFrame:
    model = device_half()
    optimizer = make(model.parameters())
    take_step(model, optimizer)
    return pb.DeviceFrame(
        close=pb.Close(
            optimizer=pack_tensors(optimizer_tensors(optimizer)),
            state=[pack_tensor("own", torch.ones(3))],
            codec_seconds=1.0,
            waited_seconds=2.0,
        )
    )


@dataclass(frozen=True)
class Device:
    """A device of a run: its optimizer, and what it leaves if it does as agreed."""

    make: OptimizerFn
    close: pb.DeviceFrame


DEVICES = [Device(make, close_after_a_step(make)) for make in OPTIMIZERS]


def make_turn(device: str, states: DeviceStates) -> Turn:
    return Turn(
        "train", device, 1, SharedHalf(SERVER_HALF), WIRES[0].codec, states, LIMITS
    )


def answer(data: bytes) -> None:
    """One input."""
    choices = Choices(data)
    device = choices.of(DEVICES)
    # not always the same one as the next device has
    next_optimizer = choices.of([device.make, device.make, *OPTIMIZERS])
    states = DeviceStates(choices.of(["relay", "per-device", "fresh"]), half=HALF)
    with watched_log():
        turn = make_turn("0", states)
        turn.open()
        try:
            turn.answer(parse_frame(changed_close(device.close, choices)))
            turn.settle()
        except SplitError:
            # nothing may be kept of it
            assert not any(states.state_dict().values())
        restored = DeviceStates(states.optimizer_state, half=HALF)
        restored.load_state_dict(states.state_dict())
        assert restored.state_dict() == states.state_dict()
        start_next_device(make_turn("1", restored), next_optimizer)


def changed_close(close: pb.DeviceFrame, choices: Choices) -> bytes:
    changed = pb.DeviceFrame()
    changed.CopyFrom(close)
    if choices.one_in(10):
        change_message(changed, choices)
    while choices.one_in(2):
        change_message(changed.close, choices)
    data = changed.SerializeToString()
    while choices.one_in(10):
        data = changed_bytes(data, choices)
    return data


def start_next_device(turn: Turn, make: OptimizerFn) -> None:
    turn.open()
    kept = turn.kept()
    assert not kept.state, "one device got what another one keeps"
    model = device_half()
    optimizer = make(model.parameters())
    start_from_kept(optimizer, kept.optimizer)
    take_step(model, optimizer)
    for parameter in model.parameters():
        assert parameter.isfinite().all(), "the next device's step is not finite"


if __name__ == "__main__":
    fuzz(answer)
