"""The bytes that precede the symbols of a matrix whose entries have the same levels.

docs/wire-format.md, section 4, has them in tables ("Even levels" and those after it).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from flwr_splitfc.codec.errors import PayloadError
from flwr_splitfc.codec.format.fields import take
from flwr_splitfc.codec.format.floats import check_interval
from flwr_splitfc.codec.format.grid import grid_step


class LevelHeader(NamedTuple):
    """The settings that the reader of such a matrix gets before the symbols.

    Parameters
    ----------
    levels : int
        ``Q``; 1 exactly if `low` is `high`.
    low, high : float
        Ends of an even grid.
    parameter : int or None
        0 to 255; its meaning, and whether there is one, depends on the quantiser.
    """

    levels: int
    low: float
    high: float
    parameter: int | None = None

    @property
    def step(self) -> float:
        """Between two even levels; 0 if there is one level."""
        return grid_step(self.low, self.high, self.levels)


_LEVELS = "Hff"
"""``Q - 1`` and the ends."""

_PARAMETER = "B"


def _layout(*, parameter: bool) -> str:
    return _LEVELS + _PARAMETER if parameter else _LEVELS


def level_header_bytes(*, parameter: bool) -> int:
    """Return the header's size."""
    return struct.calcsize("<" + _layout(parameter=parameter))


def pack_level_header(header: LevelHeader) -> bytes:
    """Write everything that precedes the symbols."""
    last_level = header.levels - 1
    data = struct.pack("<" + _LEVELS, last_level, header.low, header.high)
    if header.parameter is not None:
        data += struct.pack("<" + _PARAMETER, header.parameter)
    return data


def unpack_level_header(
    data: memoryview, *, parameter: bool
) -> tuple[LevelHeader, memoryview]:
    """Read what `pack_level_header` wrote and return the symbols' bytes with it."""
    fields, rest = take(data, _layout(parameter=parameter))
    last_level, low, high, *more = fields
    check_interval(low, high, "level")
    # 2^16 levels have to fit into 16 bits
    levels = last_level + 1
    if (levels == 1) != (low == high):
        raise PayloadError(f"{levels} levels from {low} to {high}")
    return LevelHeader(levels, low, high, *more), rest
