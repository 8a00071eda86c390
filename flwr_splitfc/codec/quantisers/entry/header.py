"""What precedes the symbols of a matrix whose entries have the same levels."""

from __future__ import annotations

import struct
from typing import NamedTuple

from flwr_splitfc.codec.errors import PayloadError
from flwr_splitfc.codec.format.fields import take
from flwr_splitfc.codec.format.floats import check_interval


class LevelHeader(NamedTuple):
    """What the reader of a matrix whose entries have the same levels knows before the symbols.

    Parameters
    ----------
    levels : int
        ``Q``; 1 exactly if `low` is `high`.
    low, high : float
        Ends of an even grid.
    parameter : int or None
        0 to 255; what it means, and whether there is one, depends on the quantiser.
    """

    levels: int
    low: float
    high: float
    parameter: int | None = None


_LEVELS, _PARAMETER = "Hff", "B"


def level_header_bytes(*, parameter: bool) -> int:
    """Bytes before the symbols."""
    return struct.calcsize("<" + _LEVELS + _PARAMETER * parameter)


def pack_level_header(header: LevelHeader) -> bytes:
    """Write everything that precedes the symbols."""
    data = struct.pack("<" + _LEVELS, header.levels - 1, header.low, header.high)
    return (
        data
        if header.parameter is None
        else data + struct.pack("<" + _PARAMETER, header.parameter)
    )


def unpack_level_header(
    data: memoryview, *, parameter: bool
) -> tuple[LevelHeader, memoryview]:
    """Read what `pack_level_header` wrote and return the symbols' bytes with it."""
    (last, low, high, *more), rest = take(data, _LEVELS + _PARAMETER * parameter)
    check_interval(low, high, "level")
    if (last == 0) != (low == high):
        raise PayloadError(f"{last + 1} levels from {low} to {high}")
    return LevelHeader(last + 1, low, high, *more), rest
