"""Entries as they are: little-endian, row by row, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from flwr_splitfc.codec.errors import PayloadError

AnyEntries = NDArray[np.generic]
"""Of any type, flat."""


def pack_exact_entries(entries: AnyEntries) -> bytes:
    """Write entries of any type of fixed size."""
    little_endian = entries.dtype.newbyteorder("<")
    return entries.astype(little_endian, copy=False).tobytes()


def unpack_exact_entries(data: memoryview, count: int, dtype: str) -> AnyEntries:
    """Read what `pack_exact_entries` wrote, into an array of its own."""
    native = np.dtype(dtype)
    size = count * native.itemsize
    if len(data) != size:
        raise PayloadError(
            f"array has {len(data)} bytes; {count} entries of {dtype} take {size}"
        )
    if dtype == "bool":
        _check_bools(data)
    little_endian = np.frombuffer(data, native.newbyteorder("<"))
    entries: NDArray[Any] = little_endian.astype(native)
    return entries


def _check_bools(data: memoryview) -> None:
    octets = np.frombuffer(data, np.uint8)
    if octets.size > 0 and octets.max() > 1:
        raise PayloadError(f"a bool is {octets.max()}; 0 or 1 was wanted")
