"""The header of labels: what precedes their entries.

``u8`` type, ``u8`` number of dimensions, so many ``u32`` sizes, ``u8`` coding. If
entries are symbols, three varints: offset (zigzag), levels, number of values. Otherwise
``i64`` offset, unless entries are raw, and ``u32`` levels, if they are range-coded.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache

from flwr_splitfc.codec.errors import PayloadError
from flwr_splitfc.codec.format.fields import (
    MOST_DIMENSIONS,
    pack_varint,
    take,
    take_varint,
)

LABEL_DTYPES = (
    "bool",
    "uint8",
    "int8",
    "int16",
    "int32",
    "int64",
    "float16",
    "float32",
    "float64",
    "bfloat16",
)
"""Label types by their code."""

LABEL_CODINGS = ("raw", "range", "<u4", "<u8", "symbols")
"""How entries are written, by code.

As they are; or less the offset: range-coded, as protocol 2 did it; in four or eight
bytes; range-coded with a short header, evenly or by how often each value occurs.
"""


@dataclass(frozen=True)
class LabelHeader:
    """Type, shape and coding of labels.

    Integer labels are `offset` plus the entry, which is below `levels` where it is
    range-coded. Symbols that are coded by how often each value occurs take so many
    different `values`; 0 stands for evenly coded ones.
    """

    dtype: str
    shape: tuple[int, ...]
    coding: str = "raw"
    offset: int = 0
    levels: int = 0
    values: int = 0


# those of the next batch are mostly the same
@lru_cache(2**8)
def pack_label_header(header: LabelHeader) -> bytes:
    """Write everything of labels that precedes their entries."""
    dimensions = len(header.shape)
    if dimensions > MOST_DIMENSIONS:
        raise ValueError(
            f"labels have {dimensions} dimensions; "
            f"at most {MOST_DIMENSIONS} can be sent"
        )
    dtype = LABEL_DTYPES.index(header.dtype)
    coding = LABEL_CODINGS.index(header.coding)
    layout = f"<BB{dimensions}IB"
    data = struct.pack(layout, dtype, dimensions, *header.shape, coding)
    if header.coding == "symbols":
        data += pack_varint(_zigzag(header.offset))
        return data + pack_varint(header.levels) + pack_varint(header.values)
    if header.coding != "raw":
        data += struct.pack("<q", header.offset)
    if header.coding == "range":
        data += struct.pack("<I", header.levels)
    return data


def unpack_label_header(data: memoryview) -> tuple[LabelHeader, memoryview]:
    """Read what `pack_label_header` wrote and return the entries' bytes with it."""
    (dtype, dimensions), rest = take(data, "BB")
    if dtype >= len(LABEL_DTYPES):
        raise PayloadError(f"unknown label type {dtype}")
    if dimensions > MOST_DIMENSIONS:
        raise PayloadError(
            f"labels have {dimensions} dimensions, more than {MOST_DIMENSIONS}"
        )
    (*shape, code), rest = take(rest, f"{dimensions}IB")
    if code >= len(LABEL_CODINGS):
        raise PayloadError(f"unknown label coding {code}")
    coding = LABEL_CODINGS[code]
    offset = levels = values = 0
    if coding == "symbols":
        zigzag, rest = take_varint(rest)
        offset = _from_zigzag(zigzag)
        levels, rest = take_varint(rest)
        values, rest = take_varint(rest)
    elif coding != "raw":
        (offset,), rest = take(rest, "q")
    if coding == "range":
        (levels,), rest = take(rest, "I")
    header = LabelHeader(
        LABEL_DTYPES[dtype], tuple(shape), coding, offset, levels, values
    )
    return header, rest


def _zigzag(value: int) -> int:
    """Number the integers 0, -1, 1, -2, 2, ... from 0.

    >>> [_zigzag(value) for value in (0, -1, 1, -2, 2)]
    [0, 1, 2, 3, 4]
    """
    return 2 * value if value >= 0 else -2 * value - 1


def _from_zigzag(number: int) -> int:
    half = number // 2
    return -half - 1 if number % 2 else half
