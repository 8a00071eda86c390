"""Matrices of floats row by row, ``f32`` or ``f16``, and bounds on what is decoded.

No value that is sent or decoded exceeds 1e38 in magnitude.
"""

from __future__ import annotations

from math import isfinite
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flwr_splitfc.codec.errors import PayloadError
from flwr_splitfc.codec.format.fields import take_bytes

MAGNITUDE_LIMIT = 1e38
"""Largest absolute value that is coded: sums of two stay finite in float32."""


def pack_floats(matrix: NDArray[Any], dtype: str) -> bytes:
    """Write a matrix row by row as ``<f4`` or ``<f2``."""
    return matrix.astype(dtype, copy=False).tobytes()


def unpack_floats(data: memoryview, rows: int, columns: int, dtype: str) -> Tensor:
    """Read a finite (rows, columns) matrix of ``<f4`` or ``<f2`` as float32."""
    entry_bytes = np.dtype(dtype).itemsize
    size = rows * columns * entry_bytes
    if len(data) != size:
        raise PayloadError(
            f"matrix has {len(data)} bytes; {rows} x {columns} {dtype} take {size}"
        )
    native_dtype = np.dtype(dtype).newbyteorder("=")
    native = np.frombuffer(data, dtype).astype(native_dtype)
    # From float16, torch converts ten times as fast as numpy.
    entries = torch.from_numpy(native).float()
    matrix = entries.view(rows, columns)
    check_decoded(matrix)
    return matrix


def unpack_scaled(
    data: memoryview, rows: int, columns: int, scale: float
) -> tuple[Tensor, memoryview]:
    """Read a (rows, columns) matrix of ``<f2`` in units of `scale`; return the rest.

    The matrix comes back as float32, in units of 1.
    """
    if not (isfinite(scale) and scale > 0):
        raise PayloadError(f"scale is {scale}; a finite positive number was wanted")
    size = 2 * rows * columns
    entries, rest = take_bytes(data, size, "entries end")
    in_units_of_scale = unpack_floats(entries, rows, columns, "<f2")
    matrix = in_units_of_scale.mul_(scale)
    # The product may exceed what its factors do not.
    check_decoded(matrix)
    return matrix, rest


def largest_magnitude(matrix: Tensor) -> float:
    """Return the largest absolute value, NaN if there is one; 0 for no entries."""
    if matrix.numel() == 0:
        return 0.0
    least, greatest = torch.aminmax(matrix)
    return max(-float(least), float(greatest))


def check_decoded(matrix: Tensor) -> None:
    """Refuse a decoded matrix with NaN, infinities or magnitudes above 1e38."""
    # Written so that NaN, which is in no order, is refused.
    if not largest_magnitude(matrix) <= MAGNITUDE_LIMIT:
        raise PayloadError("matrix holds NaN, inf or a magnitude above 1e38")


def check_interval(low: float, high: float, name: str) -> None:
    """Refuse ends of an interval that are not finite, ordered and at most 1e38."""
    if not -MAGNITUDE_LIMIT <= low <= high <= MAGNITUDE_LIMIT:
        raise PayloadError(
            f"{name} interval is {low} to {high}; "
            "finite, ordered, at most 1e38 was wanted"
        )
