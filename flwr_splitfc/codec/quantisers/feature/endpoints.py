"""Intervals of columns on the endpoint grid, stage one of two (SplitFC, Sec. V).

The grid has ``Q_ep`` = 200 points, from the least entry `grid_low` of the two-stage
columns to the greatest, `grid_high`. A column with entries from `low` to `high` has

    step  = (grid_high - grid_low) / (Q_ep - 1)
    first = floor((low - grid_low) / step)
    last  = ceil((high - grid_low) / step)                                      (6)
    n     = last - first

Rounded outward, the interval covers the column. (6) is that of docs/splitfc.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flwr_splitfc.codec.arrays import Doubles, Ints, Symbols
from flwr_splitfc.codec.quantisers.feature.header import ENDPOINT_LEVELS

_LAST_POINT = ENDPOINT_LEVELS - 1


@dataclass(frozen=True, eq=False)
class Intervals:
    """Intervals of columns on the endpoint grid.

    Parameters
    ----------
    first, last : ndarray
        Their grid points, int64 0 ... 199, of any shape.
    """

    first: Ints
    last: Ints

    @property
    def spans(self) -> Ints:
        """Steps from the first point to the last, ``n``."""
        return self.last - self.first

    @classmethod
    def from_symbols(cls, symbols: Symbols) -> Intervals:
        """Read the points of each column in turn, first and last."""
        points = symbols.astype(np.int64)
        return cls(first=points[::2], last=points[1::2])

    def symbols(self) -> Symbols:
        """Return the points of each column in turn, first and last."""
        points = np.stack([self.first, self.last], axis=1)
        return points.ravel().astype(np.int32)


def covering_intervals(
    low: Doubles, high: Doubles, grid_low: float | Doubles, grid_high: float | Doubles
) -> Intervals:
    """Return the smallest intervals that cover the columns.

    Parameters
    ----------
    low, high : ndarray
        Column minima and maxima, float64.
    grid_low, grid_high : float or ndarray
        Ends of the grid; they broadcast against the columns, one grid per leading
        index.

    Examples
    --------
    >>> covering_intervals(np.array([0.0, 0.515]), np.array([1.99, 1.005]), 0.0, 1.99)
    Intervals(first=array([ 0, 51]), last=array([199, 101]))
    """
    step = (grid_high - grid_low) / np.float64(_LAST_POINT)
    # a grid of one point has no step; all columns are at its point 0
    step = np.where(step > 0, step, 1.0)
    # (6)
    first = np.floor((low - grid_low) / step)
    last = np.ceil((high - grid_low) / step)
    return Intervals(_on_grid(first), _on_grid(last))


def _on_grid(points: Doubles) -> Ints:
    """Grid points as integers; a rounded quotient can lie beyond the last one."""
    return np.clip(points, 0, _LAST_POINT).astype(np.int64)
