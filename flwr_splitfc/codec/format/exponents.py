"""Exponents of powers of two, 0 to 15, two to a byte, the first in the low bits."""

from __future__ import annotations

import numpy as np

from flwr_splitfc.codec.arrays import Ints
from flwr_splitfc.codec.errors import PayloadError
from flwr_splitfc.codec.format.fields import take_bytes

MOST_EXPONENT = 15
"""Half a byte holds it."""


def exponents_bytes(count: int) -> int:
    """Return the bytes that so many exponents take."""
    return (count + 1) // 2


def pack_exponents(exponents: Ints) -> bytes:
    """Write exponents; half a byte that is left over is 0.

    >>> pack_exponents(np.array([1, 2, 15])).hex()
    '210f'
    """
    count = len(exponents)
    halves = np.zeros(2 * exponents_bytes(count), np.uint8)
    halves[:count] = exponents
    first = halves[::2]
    second = halves[1::2]
    return (first | second << 4).tobytes()


def take_exponents(data: memoryview, count: int) -> tuple[Ints, memoryview]:
    """Read so many exponents and return them with the bytes that follow.

    Raises
    ------
    PayloadError
        If they end early, or half a byte that is left over is not 0.
    """
    octets, rest = take_bytes(data, exponents_bytes(count), "exponents end")
    pairs = np.frombuffer(octets, np.uint8)
    first = pairs & 15
    second = pairs >> 4
    halves = np.stack([first, second], axis=1).ravel().astype(np.int64)
    if halves[count:].any():
        raise PayloadError("half a byte after the last exponent is not 0")
    return halves[:count], rest
