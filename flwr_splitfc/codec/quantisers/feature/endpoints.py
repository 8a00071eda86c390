"""Intervals of columns on the endpoint grid."""

from __future__ import annotations

import numpy as np

from flwr_splitfc.codec.arrays import Doubles, Ints
from flwr_splitfc.codec.quantisers.feature.header import ENDPOINT_LEVELS


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
