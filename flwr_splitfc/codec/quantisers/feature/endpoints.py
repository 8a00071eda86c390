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

from typing import NamedTuple

import numpy as np

from flwr_splitfc.codec.arrays import Doubles, Ints, Symbols
from flwr_splitfc.codec.compiled import compiled
from flwr_splitfc.codec.quantisers.feature.header import ENDPOINT_LEVELS

_LAST_POINT = ENDPOINT_LEVELS - 1


class Intervals(NamedTuple):
    """Intervals of columns on the endpoint grid.

    Parameters
    ----------
    first, last : ndarray
        Their grid points, int64 0 ... 199, one for each column.
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
        points = symbols.astype(np.int64).reshape(-1, 2)
        return cls(first=points[:, 0].copy(), last=points[:, 1].copy())

    def symbols(self) -> Symbols:
        """Return the points of each column in turn, first and last."""
        points = np.empty((len(self.first), 2), np.int32)
        points[:, 0] = self.first
        points[:, 1] = self.last
        return points.ravel()


class Grids(NamedTuple):
    """The endpoint grids that several numbers ``M`` of columns would have.

    Parameters
    ----------
    low, high : ndarray
        Ends of each grid, the extremes of the first M columns; 0 for none.
    span_counts : ndarray
        How many of the first M columns span n > 0 grid steps, float64 (grids, 200).
    """

    low: Doubles
    high: Doubles
    span_counts: Doubles


@compiled
def covering_intervals(
    low: Doubles, high: Doubles, grid_low: float, grid_high: float
) -> Intervals:
    """Return the smallest intervals that cover the columns.

    Parameters
    ----------
    low, high : ndarray
        Column minima and maxima, float64 (K,).
    grid_low, grid_high : float
        Ends of the grid.

    Examples
    --------
    >>> covering_intervals(np.array([0.0, 0.515]), np.array([1.99, 1.005]), 0.0, 1.99)
    Intervals(first=array([ 0, 51]), last=array([199, 101]))
    """
    step = _step(grid_low, grid_high)
    first = np.empty(len(low), np.int64)
    last = np.empty(len(low), np.int64)
    # (6)
    for column in range(len(low)):
        first[column] = _on_grid(np.floor((low[column] - grid_low) / step))
        last[column] = _on_grid(np.ceil((high[column] - grid_low) / step))
    return Intervals(first, last)


@compiled
def grids_of_first(low: Doubles, high: Doubles, counts: Ints) -> Grids:
    """Return the grids of the first M columns, for each M of increasing `counts`."""
    grid_low = np.zeros(len(counts))
    grid_high = np.zeros(len(counts))
    span_counts = np.zeros((len(counts), ENDPOINT_LEVELS))
    least, greatest = np.inf, -np.inf
    for way, count in enumerate(counts):
        before = counts[way - 1] if way > 0 else 0
        for column in range(before, count):
            # of two zeros the later one, whose sign is sent
            least = low[column] if low[column] <= least else least
            greatest = high[column] if high[column] >= greatest else greatest
        if count > 0:
            grid_low[way], grid_high[way] = least, greatest
        intervals = covering_intervals(
            low[:count], high[:count], grid_low[way], grid_high[way]
        )
        for column in range(count):
            span = intervals.last[column] - intervals.first[column]
            # a column of one point has no entries to code
            if span > 0:
                span_counts[way, span] += 1
    return Grids(grid_low, grid_high, span_counts)


@compiled
def _step(grid_low: float, grid_high: float) -> float:
    step = (grid_high - grid_low) / _LAST_POINT
    # a grid of one point has no step; all columns are at its point 0
    return step if step > 0 else 1.0


@compiled
def _on_grid(point: float) -> int:
    """A grid point; a rounded quotient can lie beyond the last one."""
    return int(min(max(point, 0.0), _LAST_POINT))
