"""Sets of columns, and which columns are kept."""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

from flwr_splitfc.codec.arrays import Ints
from flwr_splitfc.codec.errors import PayloadError
from flwr_splitfc.codec.format.fields import take


def _low_bits(count: int, total: int) -> int:
    return (total // count).bit_length() - 1


def _elias_fano_bits(count: int, total: int) -> int:
    low = _low_bits(count, total)
    return count * low + count + ((total - 1) >> low)


def column_set_bytes(count: int, total: int) -> int:
    """Bytes that a set of `count` out of `total` columns takes.

    >>> column_set_bytes(72, 1152), column_set_bytes(576, 1152), column_set_bytes(1152, 1152)
    (54, 144, 0)
    """
    if count in (0, total):
        return 0
    return (min(total, _elias_fano_bits(count, total)) + 7) // 8


def _is_bitmap(count: int, total: int) -> bool:
    return total <= _elias_fano_bits(count, total)


def pack_columns(columns: Ints, total: int) -> bytes:
    """Write a strictly increasing set of columns below `total`; its size is known to the reader."""
    count = len(columns)
    if count in (0, total):
        return b""
    if _is_bitmap(count, total):
        bits = np.zeros(total, np.uint8)
        bits[columns] = 1
    else:
        low = _low_bits(count, total)
        bits = np.zeros(_elias_fano_bits(count, total), np.uint8)
        bits[: count * low] = (columns[:, None] >> np.arange(low) & 1).ravel()
        bits[count * low + (columns >> low) + np.arange(count)] = 1
    return np.packbits(bits, bitorder="little").tobytes()


def unpack_columns(data: memoryview, count: int, total: int) -> tuple[Ints, memoryview]:
    """Read `count` columns below `total`."""
    if count in (0, total):
        return np.arange(count), data
    size = column_set_bytes(count, total)
    if len(data) < size:
        raise PayloadError(
            f"column set ends early: {len(data)} bytes left where {size} were wanted"
        )
    bits = np.unpackbits(np.frombuffer(data[:size], np.uint8), bitorder="little")
    columns = (
        _bitmap_columns(bits)
        if _is_bitmap(count, total)
        else _elias_fano_columns(bits, count, total)
    )
    if (
        len(columns) != count
        or columns[-1] >= total
        or not bool((np.diff(columns) > 0).all())
    ):
        raise PayloadError(
            f"column set is not {count} increasing columns below {total}"
        )
    return columns, data[size:]


def _bitmap_columns(bits: NDArray[np.uint8]) -> Ints:
    return np.flatnonzero(bits).astype(np.int64)


def _elias_fano_columns(bits: NDArray[np.uint8], count: int, total: int) -> Ints:
    low = _low_bits(count, total)
    if bits[_elias_fano_bits(count, total) :].any():
        raise PayloadError("column set is padded with ones; zeros were wanted")
    low_parts = bits[: count * low].reshape(count, low) @ (1 << np.arange(low))
    places = np.flatnonzero(bits[count * low :])
    if len(places) != count:
        raise PayloadError(f"column set has {len(places)} columns; {count} were wanted")
    return ((places - np.arange(count)) << low | low_parts).astype(np.int64)


def pack_selection(columns: Ints | None, width: int) -> bytes:
    """Write which of `width` columns are kept; None is all of them."""
    if columns is None:
        return struct.pack("<I", width)
    return struct.pack("<I", len(columns)) + pack_columns(columns, width)


def unpack_selection(data: memoryview, width: int) -> tuple[Ints | None, memoryview]:
    """Read which of `width` columns are kept, None for all, and return the rest."""
    (kept,), rest = take(data, "I")
    if kept > width:
        raise PayloadError(f"selection keeps {kept} columns of {width}")
    columns, rest = unpack_columns(rest, kept, width)
    return (None if kept == width else columns), rest


def selection_bytes(fewest: int, most: int, width: int) -> int:
    """Bytes of the longest selection of `fewest` to `most` out of `width` columns.

    A set grows with its count but where its low parts get a bit shorter, past ``width
    >> bits`` columns.
    """
    counts = {most, width - 1, *(width >> bits for bits in range(width.bit_length()))}
    return 4 + max(
        column_set_bytes(count, width) for count in counts if fewest <= count <= most
    )
