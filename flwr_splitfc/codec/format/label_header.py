"""What precedes the entries of labels."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from flwr_splitfc.codec.errors import PayloadError
from flwr_splitfc.codec.format.fields import MOST_DIMENSIONS, take

LABEL_DTYPES = (
    "bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64", "bfloat16",
)  # fmt: skip
"""Label types by their code."""


LABEL_CODINGS = ("raw", "range", "<u4", "<u8")
"""How entries are written, by code: as they are, range-coded, or less the offset in four or eight bytes."""


@dataclass(frozen=True)
class LabelHeader:
    """Type, shape and coding of labels; integer labels are `offset` plus the entry, below `levels`."""

    dtype: str
    shape: tuple[int, ...]
    coding: str = "raw"
    offset: int = 0
    levels: int = 0


def pack_label_header(header: LabelHeader) -> bytes:
    """Write everything of labels that precedes their entries."""
    dimensions = len(header.shape)
    if dimensions > MOST_DIMENSIONS:
        raise ValueError(
            f"labels have {dimensions} dimensions; at most {MOST_DIMENSIONS} can be sent"
        )
    codes = (
        LABEL_DTYPES.index(header.dtype),
        dimensions,
        *header.shape,
        LABEL_CODINGS.index(header.coding),
    )
    data = struct.pack(f"<BB{dimensions}IB", *codes)
    if header.coding != "raw":
        data += struct.pack("<q", header.offset)
    return data + struct.pack("<I", header.levels) if header.coding == "range" else data


def unpack_label_header(data: memoryview) -> tuple[LabelHeader, memoryview]:
    """Read what `pack_label_header` wrote and return the entries' bytes with it."""
    (dtype, dimensions), rest = take(data, "BB")
    if dtype >= len(LABEL_DTYPES):
        raise PayloadError(f"unknown label type {dtype}")
    if dimensions > MOST_DIMENSIONS:
        raise PayloadError(
            f"labels have {dimensions} dimensions, more than {MOST_DIMENSIONS}"
        )
    shape, rest = take(rest, f"{dimensions}I")
    (coding,), rest = take(rest, "B")
    if coding >= len(LABEL_CODINGS):
        raise PayloadError(f"unknown label coding {coding}")
    offset = levels = 0
    if LABEL_CODINGS[coding] != "raw":
        (offset,), rest = take(rest, "q")
    if LABEL_CODINGS[coding] == "range":
        (levels,), rest = take(rest, "I")
    return LabelHeader(
        LABEL_DTYPES[dtype], shape, LABEL_CODINGS[coding], offset, levels
    ), rest
