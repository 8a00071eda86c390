"""Combining replies, and finding what overflowed in it.

Replies are finite one by one, but their sum, or the square of a change, need not be.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import Strategy

from flwr_splitfc.strategy.resumable import remembered, way_back


class Overflow(ArithmeticError):
    """What a strategy made of finite arrays is not finite."""


def combined(
    devices: Strategy, server_round: int, replies: Iterable[Message], sent: ArrayRecord
) -> tuple[ArrayRecord | None, MetricRecord | None]:
    """Return what a strategy makes of replies, as `Strategy.aggregate_train`.

    Parameters
    ----------
    devices : Strategy
    server_round : int
    replies : iterable of Message
        Those to the round's messages.
    sent : ArrayRecord
        The arrays in these.

    Raises
    ------
    Overflow
        If it is not finite; the strategy remembers what it did before.
    """
    go_back = way_back(devices)
    # what overflows is found below
    with np.errstate(over="ignore", invalid="ignore"):
        arrays, averages = devices.aggregate_train(server_round, replies)
    found = None if arrays is None else overflowed(devices, sent, arrays)
    if found is None:
        return arrays, averages
    go_back()
    name = type(devices).__name__
    raise Overflow(f"what {name} made of the devices' arrays is not finite: {found}")


def overflowed(
    devices: Strategy, before: ArrayRecord, after: ArrayRecord
) -> str | None:
    """Return what is not finite any more; None if all is as finite as before.

    Parameters
    ----------
    devices : Strategy
        What combined the halves; one of Flower's may remember arrays of their shapes.
    before, after : ArrayRecord
        The device half. Entries that were not finite before, as in a mask, may be
        anything.
    """
    for name, array in after.items():
        if name in before and _is_less_finite(before[name], array.numpy()):
            return f"array {name!r}"
    for attribute in remembered(devices):
        for name, values in _by_name(getattr(devices, attribute), before):
            if _is_less_finite(before[name], values):
                return f"{attribute} of array {name!r}"
    return None


def _is_less_finite(before: Array, after: np.ndarray) -> bool:
    was_finite = np.isfinite(before.numpy())
    return not (np.isfinite(after) | ~was_finite).all()


def _by_name(arrays: Any, half: ArrayRecord) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the arrays that a strategy remembers; none before its first round."""
    if isinstance(arrays, Mapping):
        yield from arrays.items()
    elif arrays is not None:
        # in the half's order
        yield from zip(half, arrays, strict=True)
