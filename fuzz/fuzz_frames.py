"""Coverage-guided fuzzing of a device's frames. In the repository's root, after ``pip install atheris``:

    python -m fuzz.fuzz_frames -max_total_time=300

An input decides on a turn, which has a codec, a server half, a loss and a purpose, and
on changes of valid frames, by field and by byte. They go through `parse_frame` and
`Turn.answer`. An error that is not a `SplitError` is reported as a crash, and so is a
refused frame that changed the half, a number in it that is not finite, or a half that
then takes no honest step. Other options are libFuzzer's.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product

from fuzz.choices import Choices
from fuzz.fuzzing import fuzz, instrumented, watched_log
from fuzz.mutations import change_message, changed_bytes

with instrumented("flwr_splitfc.exchange"):
    import torch
    from torch import Tensor, nn

    from flwr_splitfc import Limits
    from flwr_splitfc.exchange import DeviceStates, HalfTrainer, SharedHalf, SplitError
    from flwr_splitfc.exchange.protocol import split_pb2 as pb
    from flwr_splitfc.exchange.protocol.frame_bytes import parse_frame
    from flwr_splitfc.exchange.server.turn.turn import Turn
    from flwr_splitfc.model.structures import Structure, leaves_of
    from fuzz.valid_frames import (
        CLASS_LABELS,
        CLASSES,
        COLUMNS,
        WIRES,
        Wire,
        some_features,
    )
    from tests.exchange.test_whole_steps import all_of, equal

MOST_EXCHANGES = 8
PURPOSES = ["train", "train", "train", "evaluate"]
FEATURES = some_features(1.0)
LIMITS = Limits(
    max_train_rows=64,
    max_predict_rows=64,
    max_matrix_bytes=2**20,
    max_label_entries=2**12,
    max_state_bytes=2**16,
    max_steps=20,
)


def plain_half() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(COLUMNS, 8), nn.ReLU(), nn.Linear(8, CLASSES)
    )


def normalised_half() -> nn.Module:
    return nn.Sequential(
        nn.BatchNorm2d(4), nn.Dropout(0.1), nn.Flatten(), nn.Linear(COLUMNS, CLASSES)
    )


class OfSeveral(nn.Module):
    """A half that adds up all that it gets, which may be of any structure."""

    def __init__(self, half: nn.Module) -> None:
        super().__init__()
        self.inner = half

    def forward(self, features: Structure) -> Tensor:
        return self.inner(sum(leaves_of(features)))


OPTIMIZERS = [partial(torch.optim.SGD, lr=0.1), partial(torch.optim.Adam, lr=1e-2)]
TRAINERS = {
    wire: [
        HalfTrainer(OfSeveral(make()), wire.loss_fn, optimizer, device="cpu")
        for make, optimizer in product([plain_half, normalised_half], OPTIMIZERS)
    ]
    for wire in WIRES
}


def make_turn(purpose: str, wire: Wire, trainer: HalfTrainer) -> Turn:
    turn = Turn(
        purpose,
        "0",
        1,
        SharedHalf(trainer),
        wire.codec,
        DeviceStates("per-device"),
        LIMITS,
        output_codec=wire.output_codec,
    )
    turn.open()
    return turn


def answer(data: bytes) -> None:
    """One input."""
    choices = Choices(data)
    wire = choices.of(WIRES)
    trainer = choices.of(TRAINERS[wire]).copy(seed=1)
    turn = make_turn(choices.of(PURPOSES), wire, trainer)
    with watched_log():
        for data in some_frames(wire, choices):
            if not is_answered(turn, data):
                break
        if trainer.steps:
            honest_step(trainer)


def some_frames(wire: Wire, choices: Choices) -> Iterator[bytes]:
    for _ in range(MOST_EXCHANGES):
        if not choices.are_left:
            return
        for frame in choices.of(wire.exchanges):
            yield changed_frame(frame, choices)


def changed_frame(frame: pb.DeviceFrame, choices: Choices) -> bytes:
    """A frame, changed by field, by byte, or not at all."""
    changed = pb.DeviceFrame()
    changed.CopyFrom(frame)
    while choices.one_in(3):
        change_message(changed, choices)
    data = changed.SerializeToString()
    while choices.one_in(10):
        data = changed_bytes(data, choices)
    return data


def is_answered(turn: Turn, data: bytes) -> bool:
    before = all_of(turn.half)
    try:
        turn.answer(parse_frame(data))
    except SplitError:
        assert equal(all_of(turn.half), before), "a refused frame changed the half"
        return False
    for name, value in turn.half.model.state_dict().items():
        assert value.isfinite().all(), f"{name} is not finite"
    return True


def honest_step(trainer: HalfTrainer) -> None:
    """What a device did keeps no other out.

    Where the loss is a square, weights that were trained to be large make any step
    larger than the last, and the half may refuse it.
    """
    if isinstance(trainer.loss_fn, nn.MSELoss):
        return
    if trainer.loss_fn is not None:
        trainer.step(FEATURES, CLASS_LABELS)
        return
    passed = trainer.forward(FEATURES)
    output = passed.output.detach().requires_grad_()
    loss = nn.functional.cross_entropy(output, CLASS_LABELS)
    trainer.backward(passed, *torch.autograd.grad(loss, output))


if __name__ == "__main__":
    fuzz(answer)
