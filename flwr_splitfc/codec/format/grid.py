"""Even grids of values, as decoders compute them.

A grid of ``q`` points from ``low`` to ``high`` has the values

    low + i (high - low) / (q - 1),   i = 0 ... q - 1,

computed in float64 by IEEE arithmetic alone, in this order, and rounded to float32: all
machines agree on them. A grid is no bytes itself; payloads have its ends and its points
``i`` (docs/wire-format.md, section 4).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flwr_splitfc.codec.arrays import Floats


def grid_values(
    index: NDArray[np.integer], low: float, high: float, levels: int
) -> Floats:
    """Return the values at points of an even grid of `levels` points.

    >>> grid_values(np.array([0, 1, 4]), 0.0, 1.0, levels=5).tolist()
    [0.0, 0.25, 1.0]
    """
    # A numpy scalar makes float64 of narrow integers, too.
    step = np.float64(grid_step(low, high, levels))
    values = low + index * step
    return values.astype(np.float32)


def grid_step(low: float, high: float, levels: int) -> float:
    """Return the distance of two points."""
    # A grid of one point, whose ends are equal, has no step.
    steps = max(levels - 1, 1)
    return (high - low) / steps
