"""Even grids for column endpoints and means; IEEE arithmetic alone, so that all machines agree."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flwr_splitfc.codec.arrays import Doubles, Floats, Ints


def grid_values(
    index: NDArray[np.integer], low: float, high: float, levels: int
) -> Floats:
    """Values at points of an even grid of `levels` points from `low` to `high`.

    >>> grid_values(np.array([0, 1, 4]), 0.0, 1.0, levels=5).tolist()
    [0.0, 0.25, 1.0]
    """
    step = (high - low) / max(levels - 1, 1)
    return (low + index * np.float64(step)).astype(np.float32)


def nearest_point(values: Doubles, low: float, high: float, levels: int) -> Ints:
    """Points of an even grid nearest to the values."""
    step = (high - low) / max(levels - 1, 1)
    points = np.rint((values - low) / step) if step > 0 else np.zeros_like(values)
    return np.clip(points, 0, levels - 1).astype(np.int64)
