"""Checks of the optimizer state that one device leaves and the next one gets.

The server does not know the devices' optimizer. It knows the arrays of the device half,
of which the optimizer's parameters are some, in an order of its own: a state tensor has
the shape of its parameter, with 1 in place of some sizes where it is a mean over them,
or is a scalar.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from math import isfinite
from typing import TypeAlias

import torch

from flwr_splitfc.codec import PayloadError
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.optimizer_inputs import (
    MOST_STATE_TENSORS,
    check_state_entries,
)
from flwr_splitfc.exchange.protocol.split_errors import StateRefused
from flwr_splitfc.exchange.protocol.tensors import unpack_tensor

Shape: TypeAlias = tuple[int, ...]

_MOST_USUAL = 1e12
"""Of an entry: gradients of up to a million, squared."""

# the parameter's number, and the optimizer's own word
_NAME = re.compile(r"(?P<number>\d{1,9})\.[\w.-]{1,100}", re.ASCII)


def check_relayed(frames: Sequence[pb.Tensor], half: Sequence[Shape]) -> None:
    """Refuse optimizer state that no optimizer over the device half leaves.

    Parameters
    ----------
    frames : sequence of pb.Tensor
    half : sequence of tuple of int
        The shapes of the device half's arrays.

    Raises
    ------
    StateRefused
    """
    # all of it before anything is decoded: a few bytes may claim any size
    check_state_entries(frames, half)
    shapes = _shapes_by_parameter(frames, len(half))
    wholes = {number: _whole(number, own, half) for number, own in shapes.items()}
    _check_wholes(Counter(wholes.values()), Counter(half))
    for frame in frames:
        _check_values(frame)


def _shapes_by_parameter(
    frames: Sequence[pb.Tensor], arrays: int
) -> dict[int, set[Shape]]:
    """Return the shapes, scalars left out, that the state of each parameter has."""
    counts: Counter[int] = Counter()
    shapes: defaultdict[int, set[Shape]] = defaultdict(set)
    for frame in frames:
        number = _parameter_number(frame.name, arrays)
        counts[number] += 1
        if counts[number] > MOST_STATE_TENSORS:
            raise StateRefused(
                f"optimizer state of parameter {number} has more than "
                f"{MOST_STATE_TENSORS} tensors"
            )
        if frame.shape:
            shapes[number].add(tuple(frame.shape))
    return shapes


def _whole(number: int, own: set[Shape], half: Sequence[Shape]) -> Shape | None:
    """Return the shape of a parameter by its state; None if that has means alone."""
    fitting = {
        array for array in half if all(_is_mean_over(shape, array) for shape in own)
    }
    if not fitting:
        raise StateRefused(
            f"optimizer state of parameter {number} has shape "
            f"{' and '.join(map(str, sorted(own)))}, as no array of the device half: "
            "set optimizer_state='fresh' in the strategy"
        )
    return next(iter(fitting & own), None)


def _is_mean_over(shape: Shape, array: Shape) -> bool:
    if len(shape) != len(array):
        return False
    return all(
        size in (1, of_array) for size, of_array in zip(shape, array, strict=True)
    )


def _parameter_number(name: str, arrays: int) -> int:
    match = _NAME.fullmatch(name)
    if match is None:
        raise StateRefused(
            f"{name!r:.100} is no name of optimizer state, wanted such as '0.exp_avg'"
        )
    number = int(match["number"])
    if number >= arrays:
        raise StateRefused(
            f"optimizer state {name!r} is of no parameter: "
            f"the device half has {arrays} arrays"
        )
    return number


def is_usual(frames: Sequence[pb.Tensor]) -> bool:
    """Whether optimizer state that `check_relayed` let pass has no very large entry."""
    try:
        return all(_largest(frame) <= _MOST_USUAL for frame in frames)
    except PayloadError:  # of a checkpoint, which passed no check
        return False


def _check_values(frame: pb.Tensor) -> None:
    try:
        largest = _largest(frame)
    except PayloadError as error:
        raise StateRefused(str(error)) from error
    if not isfinite(largest):
        raise StateRefused(f"optimizer state {frame.name!r} is not finite")


def _largest(frame: pb.Tensor) -> float:
    """Return the largest absolute entry, which is NaN if one is."""
    entries = unpack_tensor(frame)
    if entries.is_complex():
        entries = torch.view_as_real(entries)
    # as float32, which most optimizers turn it into
    entries = entries.float().abs()
    return float(entries.max()) if entries.numel() else 0.0


def _check_wholes(parameters: Counter[Shape | None], arrays: Counter[Shape]) -> None:
    """Refuse more parameters of a shape than the half has arrays of it."""
    for shape, count in parameters.items():
        if shape is not None and count > arrays[shape]:
            raise StateRefused(
                f"optimizer state is of {count} parameters of shape {shape}, "
                f"the device half has {arrays[shape]}"
            )
