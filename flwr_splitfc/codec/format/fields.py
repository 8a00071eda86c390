"""Reading the fields of a payload, one after another.

Fixed fields are those of `struct`, little-endian and without padding: ``B`` u8, ``H``
u16, ``I`` u32, ``q`` i64, ``f`` f32. A varint is an unsigned integer of up to 64 bits
as protobuf writes it: seven bits a byte, the low ones first; all bytes but the last
have their high bit set. It has no more bytes than it needs.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from functools import lru_cache
from math import prod
from typing import Any

from flwr_splitfc.codec.errors import PayloadError

MOST_DIMENSIONS = 8
"""Most dimensions that features, gradients and labels may have."""

_MOST_VARINT_BYTES = 10


def view(data: object) -> memoryview:
    """View a payload off the wire, to read it piece by piece without copies."""
    if not isinstance(data, bytes):
        raise PayloadError(f"payload is {type(data).__name__}; bytes were wanted")
    return memoryview(data)


def take(data: memoryview, layout: str) -> tuple[tuple[Any, ...], memoryview]:
    """Read the fields of a `struct` layout and return them with the bytes that follow.

    >>> fields, rest = take(memoryview(bytes([7, 0, 0, 0, 255])), "I")
    >>> fields, bytes(rest)
    ((7,), b'\\xff')
    """
    fields = _little_endian(layout)
    octets, rest = take_bytes(data, fields.size, "payload ends")
    return fields.unpack(octets), rest


def take_bytes(
    data: memoryview, size: int, what_ends: str
) -> tuple[memoryview, memoryview]:
    """Return so many bytes and those that follow; an error says what ends early."""
    if len(data) < size:
        raise PayloadError(
            f"{what_ends} early: {len(data)} bytes left where {size} were wanted"
        )
    return data[:size], data[size:]


def allocated_entries(shape: Iterable[int]) -> int:
    """Return the entries that a shape off the wire stands for, to be checked.

    A size of 0 counts as 1: it would make any other size free.

    >>> allocated_entries([3, 0, 4])
    12
    """
    return prod(size or 1 for size in shape)


@lru_cache(2**8)
def _little_endian(layout: str) -> struct.Struct:
    return struct.Struct("<" + layout)


def pack_varint(value: int) -> bytes:
    """Write an integer from 0 to ``2^64 - 1``.

    >>> pack_varint(5).hex(), pack_varint(300).hex()
    ('05', 'ac02')
    """
    octets = bytearray()
    while value > 0x7F:
        octets.append(value & 0x7F | 0x80)
        value >>= 7
    octets.append(value)
    return bytes(octets)


def take_varint(data: memoryview) -> tuple[int, memoryview]:
    """Read what `pack_varint` wrote and return it with the bytes that follow."""
    # mostly
    if data and data[0] <= 0x7F:
        return data[0], data[1:]
    value = 0
    for place, octet in enumerate(data[:_MOST_VARINT_BYTES]):
        value |= (octet & 0x7F) << 7 * place
        if octet <= 0x7F:
            size = place + 1
            if pack_varint(value) != data[:size] or value >= 2**64:
                raise PayloadError("varint is longer than it has to be, or too large")
            return value, data[size:]
    raise PayloadError(f"varint does not end: {data[:_MOST_VARINT_BYTES].hex()}")
