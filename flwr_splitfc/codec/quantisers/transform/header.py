"""The bytes before the symbols of a transformed matrix.

See docs/wire-format.md, section 14.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from enum import IntEnum
from typing import NamedTuple

from flwr_splitfc.codec.errors import PayloadError
from flwr_splitfc.codec.format.bits import Run
from flwr_splitfc.codec.format.fields import take
from flwr_splitfc.codec.format.floats import MAGNITUDE_LIMIT
from flwr_splitfc.codec.format.symbols import SymbolReader, pack_symbols

ZERO_MATRIX = struct.pack("<f", 0.0)
"""The payload of a matrix of zeros: a step of zero, and nothing else."""


class Known(IntEnum):
    """What the reader knows of the entries."""

    NOTHING = 0
    NOT_NEGATIVE = 1
    """As after a ReLU."""
    CENTRED = 2
    """Each channel's sum is zero, as that of the gradient before a BatchNorm."""


class TransformHeader(NamedTuple):
    """What the reader of a transformed matrix knows before the symbols.

    Parameters
    ----------
    step : float
        float32 and not negative; 0 if the whole matrix is 0, which is all there is
        then.
    channel_reflectors, row_reflectors : int
        Of the channels' transform and of the samples', 0 to 255.
    known : Known
    """

    step: float
    channel_reflectors: int = 0
    row_reflectors: int = 0
    known: Known = Known.NOTHING


def pack_transform(header: TransformHeader, runs: Iterable[Run]) -> bytes:
    """Write a header whose step is not zero, and all symbols."""
    return struct.pack("<fBBB", *header) + pack_symbols(runs)


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
    (channel_reflectors, row_reflectors, known), rest = take(rest, "BBB")
    if known > max(Known):
        raise PayloadError(f"{known} says what is known of entries; 0 to 2 was wanted")
    header = TransformHeader(step, channel_reflectors, row_reflectors, Known(known))
    return header, SymbolReader(rest)
