"""The bytes before the symbols of a transformed matrix.

See docs/wire-format.md, section 14.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple

from flwr_splitfc.codec.errors import PayloadError
from flwr_splitfc.codec.format.bits import Run
from flwr_splitfc.codec.format.fields import take
from flwr_splitfc.codec.format.floats import MAGNITUDE_LIMIT
from flwr_splitfc.codec.format.symbols import SymbolReader, pack_symbols

ZERO_MATRIX = struct.pack("<f", 0.0)
"""The payload of a matrix of zeros: a step of zero, and nothing else."""


class TransformHeader(NamedTuple):
    """What the reader of a transformed matrix knows before the symbols.

    Parameters
    ----------
    step : float
        float32 and not negative; 0 if the whole matrix is 0, which is all there is
        then.
    channel_reflectors, row_reflectors : int
        Of the channels' transform and of the samples', 0 to 255.
    clamped : bool
        Whether no entry is negative, as after a ReLU.
    """

    step: float
    channel_reflectors: int = 0
    row_reflectors: int = 0
    clamped: bool = False


def pack_transform(header: TransformHeader, runs: Iterable[Run]) -> bytes:
    """Write a header whose step is not zero, and all symbols."""
    return struct.pack("<fBB?", *header) + pack_symbols(runs)


def unpack_transform(data: memoryview) -> tuple[TransformHeader, SymbolReader]:
    """Read a header, and return a reader of the symbols with it.

    After a step of zero there are no symbols.

    Raises
    ------
    PayloadError
        If the bytes are no header, or bytes follow a step of zero.
    """
    (step,), rest = take(data, "f")
    if not 0 <= step <= MAGNITUDE_LIMIT:
        raise PayloadError(
            f"step is {step}; finite, not negative, at most 1e38 was wanted"
        )
    if step == 0:
        if len(rest):
            raise PayloadError(f"{len(rest)} bytes follow a step of zero")
        return TransformHeader(step), SymbolReader(rest)
    (channel_reflectors, row_reflectors, clamped), rest = take(rest, "BBB")
    if clamped > 1:
        raise PayloadError(
            f"{clamped} says whether entries are negative; 0 or 1 was wanted"
        )
    header = TransformHeader(step, channel_reflectors, row_reflectors, clamped == 1)
    return header, SymbolReader(rest)
