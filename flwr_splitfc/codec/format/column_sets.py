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
from flwr_splitfc.codec.compiled import compiled
from flwr_splitfc.codec.errors import PayloadError
from flwr_splitfc.codec.format.fields import take, take_bytes

_COUNT_BYTES = 4


@dataclass(frozen=True)
class _Bitmap:
    """One bit for each of `total` columns, of which `count` are set."""

    count: int
    total: int

    @property
    def bits(self) -> int:
        return self.total

    def encode(self, columns: Ints, octets: Octets) -> None:
        _set_bits(columns, octets)

    def decode(self, octets: Octets) -> Ints:
        """Return the columns whose bits are set, padding included."""
        return _bits_set(octets, 0, self.count + 1)


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

    def encode(self, columns: Ints, octets: Octets) -> None:
        _write_elias_fano(columns, self.low_width, octets)

    def decode(self, octets: Octets) -> Ints:
        """Return `count` columns; they may be out of order or too large."""
        places = _bits_set(octets, self.low_bits, self.count + 1)
        if len(places) != self.count:
            raise PayloadError(f"column set does not have {self.count} columns")
        if places[-1] >= self.bits - self.low_bits:
            raise PayloadError("column set is padded with ones; zeros were wanted")
        return _elias_fano_columns(places, self.low_width, octets)


@compiled
def _set_bits(places: Ints, octets: Octets) -> None:
    for place in places:
        octets[place >> 3] |= 1 << (place & 7)


@compiled
def _bits_set(octets: Octets, begin: int, most: int) -> Ints:
    """Return the first bits from `begin` on that are set, counted from there."""
    places = np.empty(most, np.int64)
    found = 0
    for octet in range(begin >> 3, len(octets)):
        if octets[octet] == 0:
            continue
        for bit in range(8):
            place = 8 * octet + bit - begin
            if octets[octet] >> bit & 1 and place >= 0 and found < most:
                places[found] = place
                found += 1
    return places[:found]


@compiled
def _write_elias_fano(columns: Ints, low_width: int, octets: Octets) -> None:
    places = np.empty(len(columns) * (low_width + 1), np.int64)
    ones = 0
    for i, column in enumerate(columns):
        for bit in range(low_width):
            if column >> bit & 1:
                places[ones] = i * low_width + bit
                ones += 1
        # In unary: before the i-th one stand as many zeros as its high part is.
        places[ones] = len(columns) * low_width + (column >> low_width) + i
        ones += 1
    _set_bits(places[:ones], octets)


@compiled
def _elias_fano_columns(high_places: Ints, low_width: int, octets: Octets) -> Ints:
    columns = np.empty(len(high_places), np.int64)
    for i, place in enumerate(high_places):
        column = place - i
        for bit in range(low_width - 1, -1, -1):
            low_place = i * low_width + bit
            low_bit = octets[low_place >> 3] >> (low_place & 7) & 1
            column = column << 1 | low_bit
        columns[i] = column
    return columns


@compiled
def _is_increasing(columns: Ints, total: int) -> bool:
    for i, column in enumerate(columns):
        if column >= total or (i > 0 and column <= columns[i - 1]):
            return False
    return True


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
    octets = np.zeros(column_set_bytes(count, total), np.uint8)
    _code(count, total).encode(columns, octets)
    return octets.tobytes()


def unpack_columns(data: memoryview, count: int, total: int) -> tuple[Ints, memoryview]:
    """Read `count` columns below `total` and return the rest."""
    if count in (0, total):
        return np.arange(count), data
    size = column_set_bytes(count, total)
    packed, rest = take_bytes(data, size, "column set ends")
    octets = np.frombuffer(packed, np.uint8)
    columns = _code(count, total).decode(octets)
    # One set has one form: what decodes is what `pack_columns` writes.
    if len(columns) != count or not _is_increasing(columns, total):
        raise PayloadError(
            f"column set is not {count} increasing columns below {total}"
        )
    return columns, rest


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
