"""Reading a payload piece by piece."""

from __future__ import annotations

import struct
from typing import Any

from flwr_splitfc.codec.errors import PayloadError

MOST_DIMENSIONS = 8
"""Of features, gradients and labels."""


def view(data: object) -> memoryview:
    """A payload off the wire, to be read piece by piece without copies."""
    if not isinstance(data, bytes):
        raise PayloadError(f"payload is {type(data).__name__}; bytes were wanted")
    return memoryview(data)


def take(data: memoryview, layout: str) -> tuple[tuple[Any, ...], memoryview]:
    """Read the fields of a `struct` layout and return them with the bytes that follow."""
    size = struct.calcsize("<" + layout)
    if len(data) < size:
        raise PayloadError(
            f"payload ends early: {len(data)} bytes left where {size} were wanted"
        )
    return struct.unpack_from("<" + layout, data), data[size:]
