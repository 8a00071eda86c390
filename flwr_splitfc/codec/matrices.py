"""Float32 matrices, and the Flower arrays that carry them encoded."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple, TypeAlias

import torch
from flwr.app import Array
from torch import Tensor

from flwr_splitfc.codec.errors import PayloadError
from flwr_splitfc.codec.format.fields import MOST_DIMENSIONS


class CodedMatrix(NamedTuple):
    """An encoded matrix from the wire, with what Flower's `Array` says of it.

    An `Array` checks its fields, which takes ten times as long; the codec checks them
    anyway.
    """

    shape: tuple[int, ...]
    stype: str
    data: bytes
    dtype: str = "float32"


Coded: TypeAlias = Array | CodedMatrix
"""What can be decoded."""


def as_matrix(tensor: Tensor) -> Tensor:
    """Flatten features or a gradient to float32 (B, D).

    Raises
    ------
    ValueError
        If it is not floating point, has no entry, or too many dimensions.
    """
    if not tensor.is_floating_point():
        raise ValueError(f"a floating point tensor was wanted, got {tensor.dtype}")
    if tensor.ndim == 0 or tensor.numel() == 0:
        raise ValueError(
            f"a batch with rows and columns was wanted, got shape {tuple(tensor.shape)}"
        )
    if tensor.ndim > MOST_DIMENSIONS:
        raise ValueError(
            f"at most {MOST_DIMENSIONS} dimensions can be sent, got {tensor.ndim}"
        )
    rows = tensor.shape[0]
    matrix = tensor.detach().reshape(rows, -1)
    return matrix.to(torch.float32)


def payload_array(stype: str, shape: Sequence[int], payload: bytes) -> Array:
    """Return the array that carries a matrix, which was of this shape, encoded."""
    return Array(dtype="float32", shape=tuple(shape), stype=stype, data=payload)


def claimed_shape(array: Coded) -> tuple[int, int]:
    """Return the rows and columns that an array from the wire claims.

    Raises
    ------
    PayloadError
        If dtype or shape are not those of an encoded matrix.
    """
    if array.dtype != "float32":
        raise PayloadError(f"dtype is {array.dtype!r}; 'float32' was wanted")
    shape = array.shape
    if not isinstance(shape, tuple) or len(shape) > MOST_DIMENSIONS:
        raise PayloadError(f"shape is not a tuple of at most {MOST_DIMENSIONS} sizes")
    # A bool is an int to `isinstance`.
    if not shape or any(type(size) is not int or size < 1 for size in shape):
        raise PayloadError(f"shape {shape} is not one of positive sizes")
    rows = shape[0]
    columns = prod(shape[1:])
    return rows, columns
