"""A matrix's entries by value, for searches over levels.

A quantiser that searches its levels compares many sets of them. Each entry x goes to
the nearest level l(x), so that the squared error and the cosine follow from two sums,

    product = sum x l(x),    square = sum l(x)^2

With the entries counted at 4097 even points, both come from sums up to the middles
between levels: a set of levels takes a few look-ups instead of a pass over the matrix.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor, bincount

from flwr_splitfc.codec.arrays import Doubles, Ints
from flwr_splitfc.codec.quantisers.entry.even_levels import nearest_level

_POINTS = 2**12 + 1


class Products(NamedTuple):
    """Inner products of rounded matrices with the matrix, and with themselves."""

    product: Doubles
    square: Doubles


class Histogram:
    """Entries counted at even points from the least to the greatest.

    Parameters
    ----------
    matrix : Tensor
        (B, K).
    low, high : float
        Its extremes, not the same.
    """

    def __init__(self, matrix: Tensor, low: float, high: float) -> None:
        counts = _counts(matrix, low, high)
        self._low = low
        self._step = (high - low) / (_POINTS - 1)
        values = low + self._step * np.arange(_POINTS)
        sums = counts * values
        self._counts_below = _prefix_sums(counts)
        self._sums_below = _prefix_sums(sums)
        self.square = float(np.sum(sums * values))

    def products(self, levels: Doubles) -> Products:
        """Return the products for matrices that are rounded to these levels.

        Parameters
        ----------
        levels : ndarray
            One set of increasing levels a row, (sets, Q).
        """
        # counts and sums of the entries that go to each level
        bounds = self._bounds(levels)
        counts = np.diff(self._counts_below[bounds])
        sums = np.diff(self._sums_below[bounds])
        products = levels * sums
        squares = levels * levels * counts
        return Products(product=products.sum(1), square=squares.sum(1))

    def _bounds(self, levels: Doubles) -> Ints:
        """First point of each level's part, and the end of the last, (sets, Q + 1)."""
        lower = levels[:, :-1]
        upper = levels[:, 1:]
        middles = (upper + lower) / 2
        # an entry in the middle goes up
        points = np.ceil((middles - self._low) / self._step)
        inner = points.clip(0, _POINTS).astype(np.int64)
        # np.pad keeps the memory layout. Another one would change the order of the sums
        # above, and with it which of two nearly equal powers PowerQuant sends.
        return np.pad(inner, ((0, 0), (1, 1)), constant_values=(0, _POINTS))


def _counts(matrix: Tensor, low: float, high: float) -> Ints:
    """How many entries are nearest to each point."""
    points = nearest_level(matrix, low, high, _POINTS).int()
    counts = bincount(points.ravel(), minlength=_POINTS)
    return np.asarray(counts.cpu())


def _prefix_sums(values: Ints | Doubles) -> Doubles:
    """The sum of the values before each point, and of all."""
    return np.append(0.0, np.cumsum(values))
