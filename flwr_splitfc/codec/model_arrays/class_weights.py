"""How probable classes are, in four or eight bits a class.

A mark of 0 stands for a weight of 0. Others are small floating-point numbers: with
``m`` bits of mantissa, 1 in a mark of four bits and 4 in one of eight, a mark is ::

    weight = (2^m + (mark - 1) mod 2^m) << ((mark - 1) // 2^m)

so four bits reach from 2 to 256 in two steps an octave, and eight from 16 to 2^20 in
16. The sender takes what makes the payload shorter: four bits cost less up to a few
thousand entries, eight beyond.
"""

from __future__ import annotations

import numpy as np

from flwr_splitfc.codec.arrays import Ints, Octets
from flwr_splitfc.codec.errors import PayloadError

_MANTISSA_BITS = {4: 1, 8: 4}
"""By the bits of a mark."""


def _weight_table(mark_bits: int) -> Ints:
    """Return the weight of every mark."""
    steps_an_octave = 1 << _MANTISSA_BITS[mark_bits]
    above = np.arange((1 << mark_bits) - 1)
    octaves = above // steps_an_octave
    steps = above % steps_an_octave
    weights = (steps_an_octave + steps) << octaves
    return np.concatenate([[0], weights])


_WEIGHTS = {mark_bits: _weight_table(mark_bits) for mark_bits in _MANTISSA_BITS}


def mark_weights(marks: Octets, mark_bits: int) -> Ints:
    """Return the weights that marks of four or eight bits stand for.

    >>> mark_weights(np.arange(9, dtype=np.uint8), mark_bits=4).tolist()
    [0, 2, 3, 4, 6, 8, 12, 16, 24]
    """
    return _WEIGHTS[mark_bits][marks]


def nearest_marks(counts: Ints, mark_bits: int) -> Octets:
    """Return marks for counts, at least 1 for what occurs; the largest gets the last.

    >>> nearest_marks(np.array([0, 1, 50, 1000]), mark_bits=4).tolist()
    [0, 1, 6, 15]
    """
    weights = _WEIGHTS[mark_bits][1:]
    midpoints = (weights[1:] + weights[:-1]) / 2
    scaled = counts * (weights[-1] / counts.max())
    nearest = 1 + np.searchsorted(midpoints, scaled)
    marks = np.where(counts > 0, nearest, 0)
    return marks.astype(np.uint8)


def mark_bytes(marks: int, mark_bits: int) -> int:
    """Return the bytes of so many marks."""
    return (marks * mark_bits + 7) // 8


def pack_marks(marks: Octets, mark_bits: int) -> bytes:
    """Write marks one after another, the first of two in a byte in its low bits."""
    if mark_bits == 8:
        return marks.tobytes()
    if len(marks) % 2 == 1:
        marks = np.append(marks, np.uint8(0))
    pairs = marks[0::2] | marks[1::2] << 4
    return pairs.tobytes()


def unpack_marks(data: memoryview, count: int, mark_bits: int) -> Octets:
    """Read the marks of so many classes, from as many bytes as they take."""
    octets = np.frombuffer(data, np.uint8)
    if mark_bits == 8:
        return octets
    halves = np.stack([octets & 15, octets >> 4], axis=1).ravel()
    if halves[count:].any():
        raise PayloadError("weights of classes are not padded with zeros")
    return halves[:count]
