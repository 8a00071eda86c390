"""Checks of the optimizer state that one device leaves and the next one gets.

The server does not know the devices' optimizer. It knows the arrays of the device half,
of which the optimizer's parameters are some, in an order of its own: a state tensor has
the shape of its parameter, or is a scalar.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias

from flwr_splitfc.codec import PayloadError
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.split_errors import StateRefused
from flwr_splitfc.exchange.protocol.tensors import unpack_tensor

Shape: TypeAlias = tuple[int, ...]

# the parameter's number, and the optimizer's own word
_NAME = re.compile(r"(?P<number>\d{1,9})\.[\w.-]{1,100}", re.ASCII)
_MOST_PER_PARAMETER = 16  # Adam has three


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
    most = _MOST_PER_PARAMETER * len(half)
    if len(frames) > most:
        raise StateRefused(
            f"the optimizer state has {len(frames)} tensors, at most {most} may be"
        )
    known = set(half)
    shapes: dict[int, Shape] = {}
    for frame in frames:
        number = _parameter_number(frame.name, len(half))
        shape = tuple(frame.shape)
        # before it is decoded: a few bytes may claim any size
        if shape and shape not in known:
            raise StateRefused(
                f"optimizer state has shape {shape}, as no array of the device half"
            )
        _check_values(frame)
        if shape and shapes.setdefault(number, shape) != shape:
            raise StateRefused(
                f"optimizer state of parameter {number} has two shapes, "
                f"{shapes[number]} and {shape}"
            )
    _check_shapes(shapes, half)


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


def _check_values(frame: pb.Tensor) -> None:
    try:
        tensor = unpack_tensor(frame)
    except PayloadError as error:
        raise StateRefused(str(error)) from error
    # as float32, which most optimizers turn it into
    if not tensor.float().isfinite().all():
        raise StateRefused(f"optimizer state {frame.name!r} is not finite")


def _check_shapes(shapes: dict[int, Shape], half: Sequence[Shape]) -> None:
    """Refuse more parameters of a shape than the half has arrays of it."""
    there = Counter(half)
    for shape, parameters in Counter(shapes.values()).items():
        if parameters > there[shape]:
            raise StateRefused(
                f"optimizer state is of {parameters} parameters of shape {shape}, "
                f"the device half has {there[shape]}"
            )
