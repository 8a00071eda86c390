"""The codebook that precedes the indices (docs/wire-format.md, section 12)."""

from __future__ import annotations

import struct
from math import ceil

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from flwr_splitfc.codec.errors import PayloadError
from flwr_splitfc.codec.format.fields import take
from flwr_splitfc.codec.format.floats import pack_floats, unpack_scaled

_FIELDS = "IIHf"
"""Length of a subvector, groups, centroids of a group, scale."""

_HALF_BYTES = 2


def codebook_bytes(length: int, groups: int, centroids: int) -> int:
    """Return the bytes before the symbols."""
    entries = groups * centroids * length
    return struct.calcsize("<" + _FIELDS) + _HALF_BYTES * entries


def pack_codebook(centroids: NDArray[np.float16], scale: float) -> bytes:
    """Write (R, L, d) centroids in units of `scale`."""
    groups, count, length = centroids.shape
    fields = struct.pack("<" + _FIELDS, length, groups, count, scale)
    return fields + pack_floats(centroids, "<f2")


def unpack_codebook(
    data: memoryview, rows: int, columns: int
) -> tuple[Tensor, memoryview]:
    """Read the (R, L, d) centroids of a (B, K) matrix, float32 and finite.

    Returns
    -------
    centroids : Tensor
    rest : memoryview
        The bytes of the symbols.

    Raises
    ------
    PayloadError
        If the bytes are no codebook of a matrix of this shape.
    """
    (length, groups, count, scale), rest = take(data, _FIELDS)
    if not 1 <= length <= columns:
        raise PayloadError(
            f"subvectors have {length} entries; 1 to {columns} were wanted"
        )
    positions = ceil(columns / length)
    if not 1 <= groups <= positions:
        raise PayloadError(f"{positions} subvectors in {groups} groups")
    # no more numbers than the matrix has: a payload cannot make the codebook large
    most = rows * columns // (groups * length)
    if not 1 <= count <= most:
        raise PayloadError(
            f"{groups} x {count} centroids of {length} entries "
            f"for a {rows} x {columns} matrix"
        )
    entries, rest = unpack_scaled(rest, groups * count, length, scale)
    centroids = entries.view(groups, count, length)
    return centroids, rest
