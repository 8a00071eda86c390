"""The targets of `fuzz/`, on inputs that are the same each time."""

from collections.abc import Iterator

import pytest

from fuzz import (
    fuzz_checkpoints,
    fuzz_frames,
    fuzz_kept_state,
    fuzz_messages,
    fuzz_models,
)
from fuzz.fuzzing import Target, random_inputs

INPUTS = {
    "frames": (fuzz_frames.answer, 500, 3000),
    "kept_state": (fuzz_kept_state.answer, 500, 3000),
    "models": (fuzz_models.answer, 500, 3000),
    # two rounds each
    "messages": (fuzz_messages.answer, 50, 400),
    "checkpoints": (fuzz_checkpoints.answer, 300, 1500),
}


def check(target: Target, inputs: Iterator[bytes]) -> None:
    for data in inputs:
        try:
            target(data)
        except Exception as error:
            error.add_note(f"the input is {data.hex()}")
            raise


@pytest.mark.parametrize("name", INPUTS)
def test_inputs(name: str) -> None:
    target, few, _ = INPUTS[name]
    check(target, random_inputs(few, seed=0))


@pytest.mark.slow
@pytest.mark.parametrize("name", INPUTS)
def test_many_inputs(name: str) -> None:
    target, _, many = INPUTS[name]
    check(target, random_inputs(many, seed=1))
