"""Sets of columns, and selections that name their count.

A set of k out of n columns is nothing where k is 0 or n. Otherwise it is the shorter of

- a bitmap of n bits, and
- the Elias-Fano code: ``l = floor(log2(n / k))`` low bits of each column, then the high
  parts in unary, as a bitmap in which column ``c_i`` sets bit ``(c_i >> l) + i``;

the lowest bit of a byte first, the last byte padded with zeros. A selection is ``u32``
K and the set of K out of D columns. docs/wire-format.md has both for implementers.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from flwr_splitfc.codec.arrays import Ints, Octets
from flwr_splitfc.codec.errors import PayloadError
from flwr_splitfc.codec.format.fields import take

_COUNT_BYTES = 4


@dataclass(frozen=True)
class _Bitmap:
    """One bit for each of `total` columns, of which `count` are set."""

    count: int
    total: int

    @property
    def bits(self) -> int:
        return self.total

    def encode(self, columns: Ints) -> Octets:
        bits = np.zeros(self.bits, np.uint8)
        bits[columns] = 1
        return bits

    def decode(self, bits: Octets) -> Ints:
        """Return the columns whose bits are set, padding included."""
        columns = np.flatnonzero(bits)
        return columns.astype(np.int64)


@dataclass(frozen=True)
class _EliasFano:
    """The Elias-Fano code of `count` increasing columns below `total`."""

    count: int
    total: int

    @property
    def low_width(self) -> int:
        """Low bits of each column, ``l``."""
        columns_apart = self.total // self.count
        return columns_apart.bit_length() - 1

    @property
    def low_bits(self) -> int:
        """Bits of all low parts."""
        return self.count * self.low_width

    @property
    def bits(self) -> int:
        # A one for each column, and a zero for each step of the high part.
        largest_high_part = (self.total - 1) >> self.low_width
        high_bits = self.count + largest_high_part
        return self.low_bits + high_bits

    def encode(self, columns: Ints) -> Octets:
        bits = np.zeros(self.bits, np.uint8)
        shifts = np.arange(self.low_width)
        low_parts = columns[:, None] >> shifts & 1
        bits[: self.low_bits] = low_parts.ravel()
        high_parts = columns >> self.low_width
        # In unary: before the i-th one stand as many zeros as its high part is.
        places = high_parts + np.arange(self.count)
        bits[self.low_bits + places] = 1
        return bits

    def decode(self, bits: Octets) -> Ints:
        """Return `count` columns; they may be out of order or too large."""
        if bits[self.bits :].any():
            raise PayloadError("column set is padded with ones; zeros were wanted")
        places = np.flatnonzero(bits[self.low_bits :])
        if len(places) != self.count:
            raise PayloadError(
                f"column set has {len(places)} columns; {self.count} were wanted"
            )
        high_parts = places - np.arange(self.count)
        low_bits = bits[: self.low_bits]
        digits = low_bits.reshape(self.count, self.low_width)
        place_values = 1 << np.arange(self.low_width)
        low_parts = digits @ place_values
        columns = high_parts << self.low_width | low_parts
        return columns.astype(np.int64)


@lru_cache(2**10)
def _code(count: int, total: int) -> _Bitmap | _EliasFano:
    """Choose the shorter code of some, not all, of `total` columns."""
    bitmap = _Bitmap(count, total)
    elias_fano = _EliasFano(count, total)
    if bitmap.bits <= elias_fano.bits:
        return bitmap
    return elias_fano


# a plan asks for a dozen sizes, and those of the next batch are mostly the same
@lru_cache(2**14)
def column_set_bytes(count: int, total: int) -> int:
    """Return the bytes that a set of `count` out of `total` columns takes.

    >>> column_set_bytes(72, 1152), column_set_bytes(576, 1152)
    (54, 144)
    >>> column_set_bytes(1152, 1152)
    0
    """
    if count in (0, total):
        return 0
    bits = _code(count, total).bits
    return (bits + 7) // 8


def pack_columns(columns: Ints, total: int) -> bytes:
    """Write a strictly increasing set of columns below `total`.

    The count is not written: the reader knows it.
    """
    count = len(columns)
    if count in (0, total):
        return b""
    bits = _code(count, total).encode(columns)
    octets = np.packbits(bits, bitorder="little")
    return octets.tobytes()


def unpack_columns(data: memoryview, count: int, total: int) -> tuple[Ints, memoryview]:
    """Read `count` columns below `total` and return the rest."""
    if count in (0, total):
        return np.arange(count), data
    size = column_set_bytes(count, total)
    if len(data) < size:
        raise PayloadError(
            f"column set ends early: {len(data)} bytes left where {size} were wanted"
        )
    octets = np.frombuffer(data[:size], np.uint8)
    bits = np.unpackbits(octets, bitorder="little")
    columns = _code(count, total).decode(bits)
    # One set has one form: what decodes is what `pack_columns` writes.
    _check_columns(columns, count, total)
    return columns, data[size:]


def _check_columns(columns: Ints, count: int, total: int) -> None:
    steps = np.diff(columns)
    increasing = bool((steps > 0).all())
    if len(columns) != count or columns[-1] >= total or not increasing:
        raise PayloadError(
            f"column set is not {count} increasing columns below {total}"
        )


def pack_selection(columns: Ints | None, width: int) -> bytes:
    """Write which of `width` columns are kept; None is all of them."""
    if columns is None:
        return struct.pack("<I", width)
    count = struct.pack("<I", len(columns))
    return count + pack_columns(columns, width)


def unpack_selection(data: memoryview, width: int) -> tuple[Ints | None, memoryview]:
    """Read which of `width` columns are kept, None for all, and return the rest."""
    (kept,), rest = take(data, "I")
    if kept > width:
        raise PayloadError(f"selection keeps {kept} columns of {width}")
    if kept == width:
        return None, rest
    return unpack_columns(rest, kept, width)


def selection_bytes(fewest: int, most: int, width: int) -> int:
    """Return the bytes of the longest selection of `fewest` to `most` columns."""
    # A set grows with its count but where its low parts get a bit shorter, past
    # `width >> bits` columns. So the longest has the greatest count, one of these, or
    # all columns but one.
    candidates = {most, width - 1}
    for bits in range(width.bit_length()):
        candidates.add(width >> bits)
    sizes = [
        column_set_bytes(count, width)
        for count in candidates
        if fewest <= count <= most
    ]
    return _COUNT_BYTES + max(sizes)
