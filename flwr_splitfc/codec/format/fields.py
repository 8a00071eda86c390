"""Reading the fixed fields of a payload, one after another.

Fields are those of `struct`, little-endian and without padding: ``B`` u8, ``H`` u16,
``I`` u32, ``q`` i64, ``f`` f32.
"""

from __future__ import annotations

import struct
from typing import Any

from flwr_splitfc.codec.errors import PayloadError

MOST_DIMENSIONS = 8
"""Most dimensions that features, gradients and labels may have."""


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
    little_endian = "<" + layout
    size = struct.calcsize(little_endian)
    if len(data) < size:
        raise PayloadError(
            f"payload ends early: {len(data)} bytes left where {size} were wanted"
        )
    fields = struct.unpack_from(little_endian, data)
    return fields, data[size:]
