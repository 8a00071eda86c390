"""Finding what overflowed where a strategy combined device halves.

Replies are finite one by one, but their sum, or the square of a change, need not be.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import Strategy

from flwr_splitfc.strategy.resumable import remembered


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
