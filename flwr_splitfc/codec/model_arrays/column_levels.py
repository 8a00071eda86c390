"""Columns of very different scales, brought to one scale for coding.

Where a table's columns are in units of their own, so are the columns of the first
layer's weights, changes and momentum. One step for the tensor is too coarse for the
small ones, and an optimizer like Adam divides each by its own scale.

A column has all entries with one place along the second dimension: the weights of one
input, or of one input channel. Each has an exponent, and its entries are multiplied by
2 to that before they are coded. Rows are not levelled: how large those of an embedding
are, say how often words come, and not units.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log, prod, sqrt

import numpy as np

from flwr_splitfc.codec.arrays import Ints
from flwr_splitfc.codec.errors import PayloadError
from flwr_splitfc.codec.format.exponents import (
    MOST_EXPONENT,
    pack_exponents,
    take_exponents,
)

_FEWEST_ENTRIES = 8
"""Of a column: fewer tell little of a scale."""

_CLEARLY = 2.5
"""Octaves between columns, beyond those that come by chance, that make a difference."""


@dataclass(frozen=True)
class ColumnLevels:
    """The exponents of an array's columns.

    Parameters
    ----------
    shape : tuple of int
        Of the array.
    exponents : ndarray
        One for each place along the second dimension.
    """

    shape: tuple[int, ...]
    exponents: Ints

    def of(self, block: slice) -> Ints:
        """Return the exponent of each of a block of the flat array's entries.

        >>> levels = ColumnLevels((8, 2, 3), np.array([0, 4]))
        >>> levels.of(slice(1, 9))
        array([0, 0, 4, 4, 4, 0, 0, 0])
        """
        places = np.arange(block.start, block.stop) // prod(self.shape[2:])
        of_entries: Ints = self.exponents[places % len(self.exponents)]
        return of_entries

    def pack(self) -> bytes:
        """Write the exponents."""
        return pack_exponents(self.exponents)


def fit_levels(values: np.ndarray) -> ColumnLevels | None:
    """Return what levels an array of finite entries, or None where columns are alike.

    >>> columns = np.ones((8, 4)) * [1, 1, 100, 0]
    >>> fit_levels(columns).exponents
    array([7, 7, 0, 0])
    """
    greatest = np.abs(values).max()
    if greatest == 0 or not _has_columns(values.shape):
        return None
    means = _mean_squares(values, greatest)
    largest = means.max()
    # what is all zero has no scale
    means[means == 0] = largest
    octaves = np.log2(largest / means) / 2
    columns = len(means)
    entries = values.size // columns
    if octaves.max() < _CLEARLY + _chance(columns, entries):
        return None
    whole = np.rint(octaves)
    exponents = whole.clip(0, MOST_EXPONENT).astype(np.int64)
    return ColumnLevels(values.shape, exponents)


def _mean_squares(values: np.ndarray, unit: np.floating) -> np.ndarray:
    """Return the mean square of each column's entries in a unit, float64 (C,)."""
    at_least_float32 = np.result_type(values, np.float32)
    in_units = np.divide(values, unit, dtype=at_least_float32)
    squares = np.square(in_units)
    others = tuple(dim for dim in range(values.ndim) if dim != 1)
    means: np.ndarray = squares.mean(others, dtype=np.float64)
    return means


def _chance(columns: int, entries: int) -> float:
    """Return the octaves that Gaussian columns of one scale may be apart."""
    # of the logarithm of a root mean square
    deviation = 1 / (log(2) * sqrt(2 * entries))
    return 2 * deviation * sqrt(2 * log(columns))


def unpack_levels(
    data: memoryview, shape: tuple[int, ...]
) -> tuple[ColumnLevels, memoryview]:
    """Read what `ColumnLevels.pack` wrote, and return it with the bytes that follow."""
    if not _has_columns(shape):
        raise PayloadError(f"shape {shape} has no columns that are levelled")
    exponents, rest = take_exponents(data, shape[1])
    if len(rest) == 0:
        raise PayloadError("exponents of entries that are all zero")
    return ColumnLevels(shape, exponents), rest


def _has_columns(shape: tuple[int, ...]) -> bool:
    return len(shape) > 1 and prod(shape) >= _FEWEST_ENTRIES * shape[1]
