"""The codebook that precedes the indices."""

from __future__ import annotations

import struct
from math import ceil

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from flwr_splitfc.codec.errors import PayloadError
from flwr_splitfc.codec.format.fields import take
from flwr_splitfc.codec.format.floats import pack_floats, unpack_scaled

_CODEBOOK = "IIHf"


def codebook_bytes(length: int, groups: int, centroids: int) -> int:
    """Bytes before the symbols."""
    return struct.calcsize("<" + _CODEBOOK) + 2 * groups * centroids * length


def pack_codebook(centroids: NDArray[np.float16], scale: float) -> bytes:
    """Write (R, L, d) centroids in units of `scale`."""
    groups, count, length = centroids.shape
    return struct.pack("<" + _CODEBOOK, length, groups, count, scale) + pack_floats(
        centroids, "<f2"
    )


def unpack_codebook(
    data: memoryview, rows: int, columns: int
) -> tuple[Tensor, memoryview]:
    """Read the (R, L, d) centroids of a (B, K) matrix, float32 and finite, and return the symbols' bytes with them."""
    (length, groups, count, scale), rest = take(data, _CODEBOOK)
    if not 1 <= length <= columns:
        raise PayloadError(
            f"subvectors have {length} entries; 1 to {columns} were wanted"
        )
    positions = ceil(columns / length)
    if not 1 <= groups <= positions:
        raise PayloadError(f"{positions} subvectors in {groups} groups")
    if not 1 <= count <= rows * columns // (groups * length):
        raise PayloadError(
            f"{groups} x {count} centroids of {length} entries for a {rows} x {columns} matrix"
        )
    entries, rest = unpack_scaled(rest, groups * count, length, scale)
    return entries.view(groups, count, length), rest
