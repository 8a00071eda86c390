"""Even grids for column endpoints and means; IEEE arithmetic alone, so that all machines agree."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flwr_splitfc.codec.format.wire import ENDPOINT_LEVELS

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]


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


def endpoints(
    low: Doubles, high: Doubles, grid_low: float | Doubles, grid_high: float | Doubles
) -> tuple[Ints, Ints]:
    """Grid intervals that cover the columns: minima rounded down, maxima rounded up.

    Parameters
    ----------
    low, high : ndarray
        Column minima and maxima, float64.
    grid_low, grid_high : float or ndarray
        Ends of the grid; they broadcast against the columns, one grid per leading
        index.

    Examples
    --------
    >>> endpoints(np.array([0.0, 0.515]), np.array([1.99, 1.005]), 0.0, 1.99)
    (array([ 0, 51]), array([199, 101]))
    """
    last = ENDPOINT_LEVELS - 1
    step = (grid_high - grid_low) / np.float64(last)
    step = np.where(step > 0, step, 1.0)
    first = np.floor((low - grid_low) / step)
    final = np.ceil((high - grid_low) / step)
    return np.clip(first, 0, last).astype(np.int64), np.clip(final, 0, last).astype(
        np.int64
    )
