"""Slices of very different scales, brought to one scale for coding.

Where a table's columns are of different scales, so are the columns of the first layer's
weights, changes and momentum. One step for the tensor is too coarse for the small ones,
and an optimizer like Adam divides each by its own scale. Rows of an embedding differ in
how often their words come.

An entry is multiplied by 2 to the sum of the exponents of its slices, along the two
largest dimensions: rows and columns, or a convolution's channels. Slices then are about
as large as the largest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod

import numpy as np

from flwr_splitfc.codec.arrays import Doubles, Ints
from flwr_splitfc.codec.errors import PayloadError
from flwr_splitfc.codec.format.fields import take_bytes

_MOST_EXPONENT = 15
"""Half a byte holds it."""

_FEWEST_ENTRIES = 8
"""Of a slice that has an exponent: fewer tell little of a scale."""

_CLEARLY = 3
"""The largest exponent from which on slices are levelled."""

_NO_LEVELS = np.zeros(0, np.int64)


@dataclass(frozen=True)
class SliceLevels:
    """The exponents of an array's slices.

    Parameters
    ----------
    shape : tuple of int
        Of the array.
    exponents : sequence of ndarray
        By dimension, one for each slice; none along a dimension without levels.
    """

    shape: tuple[int, ...]
    exponents: Sequence[Ints]

    def of(self, block: slice) -> Ints:
        """Return what 2 is raised to for each of a block of the flat array's entries.

        >>> SliceLevels((2, 8), [np.array([0, 3]), np.array([])]).of(slice(6, 10))
        array([0, 0, 3, 3])
        """
        total = np.zeros(block.stop - block.start, np.int64)
        places = np.unravel_index(np.arange(block.start, block.stop), self.shape)
        for own, place in zip(self.exponents, places, strict=True):
            if len(own) > 0:
                total += own[place]
        return total

    def pack(self) -> bytes:
        """Write the exponents, two to a byte, the first in its low bits."""
        halves = np.concatenate([*self.exponents, [0]]).astype(np.uint8)
        count = len(halves) // 2
        pairs = halves[: 2 * count].reshape(count, 2)
        return (pairs[:, 0] | pairs[:, 1] << 4).tobytes()


def fit_levels(values: np.ndarray) -> SliceLevels | None:
    """Return what levels an array of finite entries, or None where slices are alike.

    >>> columns = np.ones((8, 16)) * np.repeat([1, 100], 8)
    >>> fit_levels(columns).exponents[1]
    array([7, 7, 7, 7, 7, 7, 7, 7, 0, 0, 0, 0, 0, 0, 0, 0])
    """
    dims = _levelled_dims(values.shape)
    greatest = np.abs(values).max()
    if greatest == 0 or not dims:
        return None
    at_least_float32 = np.result_type(values, np.float32)
    squares = np.square(np.divide(values, greatest, dtype=at_least_float32))
    others = tuple(dim for dim in range(values.ndim) if dim not in dims)
    means = squares.mean(others, dtype=np.float64, keepdims=True)
    octaves = {dim: np.zeros(values.shape[dim]) for dim in dims}
    # a slice's scale is known when that of the others across it is, so twice
    for dim in dims * 2:
        octaves[dim] += _level(means, dim)
    exponents = {dim: _exponents(own) for dim, own in octaves.items()}
    if max(own.max() for own in exponents.values()) < _CLEARLY:
        return None
    return SliceLevels(
        values.shape, [exponents.get(dim, _NO_LEVELS) for dim in range(values.ndim)]
    )


def _levelled_dims(shape: Sequence[int]) -> list[int]:
    """Return the two largest dimensions, in order, if their slices have enough entries.

    >>> _levelled_dims((32, 16, 5, 5)), _levelled_dims((1, 20, 30))
    ([0, 1], [1, 2])
    """
    largest = sorted(range(len(shape)), key=lambda dim: -shape[dim])[:2]
    entries = prod(shape)
    return sorted(dim for dim in largest if entries >= _FEWEST_ENTRIES * shape[dim])


def _level(squares: Doubles, dim: int) -> Doubles:
    """Bring the slices along a dimension to a mean of 1, and return by what octaves."""
    means = squares.mean(tuple(other for other in range(squares.ndim) if other != dim))
    # what is all zero has no scale
    means[means == 0] = means.max()
    along = [-1 if other == dim else 1 for other in range(squares.ndim)]
    squares /= means.reshape(along)
    octaves: Doubles = np.log2(means) / -2
    return octaves


def _exponents(octaves: Doubles) -> Ints:
    exponents: Ints = np.rint(octaves - octaves.min()).astype(np.int64)
    return exponents.clip(0, _MOST_EXPONENT)


def unpack_levels(
    data: memoryview, shape: tuple[int, ...]
) -> tuple[SliceLevels, memoryview]:
    """Read what `SliceLevels.pack` wrote, and return it with the bytes that follow."""
    dims = _levelled_dims(shape)
    counts = [size if dim in dims else 0 for dim, size in enumerate(shape)]
    total = sum(counts)
    octets, rest = take_bytes(data, (total + 1) // 2, "exponents end")
    pairs = np.frombuffer(octets, np.uint8)
    halves = np.stack([pairs & 15, pairs >> 4], axis=1).ravel().astype(np.int64)
    if halves[total:].any():
        raise PayloadError("half a byte after the last exponent is not 0")
    if len(rest) == 0:
        raise PayloadError("exponents of entries that are all zero")
    ends = list(accumulate(counts))
    return SliceLevels(shape, np.split(halves[:total], ends[:-1])), rest
