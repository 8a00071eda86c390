"""The discrete cosine transform (DCT) along each axis of a channel's map.

An axis of n places is cut into blocks of l places, where l is the largest divisor of n
up to 64. Frequency k of a block x_0 ... x_(l-1) is::

    X_k = sum over i of  a_k cos(pi (2 i + 1) k / (2 l)) x_i
    a_0 = sqrt(1 / l),   a_k = sqrt(2 / l)  for k > 0

This is the DCT-II; with these factors it is orthonormal, and its transpose inverts it.

The encoder transforms in float32. The decoder inverts in fixed-point numbers::

    W[k][i] = round(4096 a_k cos(pi (2 i + 1) k / (2 l)))
    x_i     = round(sum over k of  W[k][i] X_k / 4096)

See docs/splitfc-rd.md, "The method", 2, and docs/wire-format.md, section 14, "Values".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from math import cos, pi, sqrt

import torch
from torch import Tensor

from flwr_splitfc.codec.quantisers.transform.fixed_point import whole

LONGEST_DCT = 64
"""Places in a block, at most."""

DCT_BITS = 12
"""Entries of the decoder's matrix are in units of ``2^-12``."""


@lru_cache
def dct_matrix(length: int) -> Tensor:
    """Return the DCT as integers of ``2^-12`` in float64; row k is frequency k.

    >>> dct_matrix(2)
    tensor([[ 2896.,  2896.],
            [ 2896., -2896.]], dtype=torch.float64)
    """
    waves = []
    for frequency in range(length):
        factor = _norm(frequency, length) * 2**DCT_BITS
        wave = []
        for place in range(length):
            # W[k][i]
            odd = 2 * place + 1
            angle = pi * odd * frequency / (2 * length)
            entry = factor * cos(angle)
            wave.append(round(entry))
        waves.append(wave)
    return torch.tensor(waves, dtype=torch.float64, device="cpu")


def _norm(frequency: int, length: int) -> float:
    """Return the factor ``a_k`` of a frequency."""
    if frequency == 0:
        return sqrt(1 / length)
    return sqrt(2 / length)


@lru_cache
def dct_length(size: int) -> int:
    """Return the largest divisor of an axis' size up to 64: the places in a block.

    >>> dct_length(6), dct_length(130), dct_length(97)
    (6, 26, 1)
    """
    length = min(size, LONGEST_DCT)
    while size % length:
        length -= 1
    return length


def to_frequencies(parts: Tensor, axes: Sequence[int]) -> Tensor:
    """Transform float32 (B, C, f) along each axis of the map.

    Parameters
    ----------
    parts : Tensor of shape (B, C, f)
    axes : sequence of int
        The sizes of the map's dimensions; their product is ``f``, or there are none.
    """
    moved = parts
    for length, stride in _block_axes(parts.shape[-1], axes):
        forward = dct_matrix(length).float() / 2**DCT_BITS
        moved = _multiply_blocks(forward, moved, stride)
    return moved.reshape(parts.shape).contiguous()


def from_frequencies(parts: Tensor, axes: Sequence[int]) -> Tensor:
    """Invert the transform for integers in float64 (B, C, f).

    The result is rounded to integers after each axis.
    """
    moved = parts
    for length, stride in _block_axes(parts.shape[-1], axes):
        inverse = dct_matrix(length).T / 2**DCT_BITS
        moved = whole(_multiply_blocks(inverse, moved, stride))
    return moved.reshape(parts.shape).contiguous()


def _block_axes(places: int, axes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the block length of each axis, and the places from one of its entries on.

    An axis in blocks of one place is left out: its transform changes nothing.
    """
    stride = places
    for size in axes:
        stride //= size
        length = dct_length(size)
        if length > 1:
            yield length, stride


def _multiply_blocks(matrix: Tensor, parts: Tensor, stride: int) -> Tensor:
    """Multiply each block along an axis by a matrix; its entries are a stride apart."""
    length = len(matrix)
    blocks = parts.reshape(-1, length, stride)
    own = matrix.to(parts.device)
    return torch.einsum("pk,nkq->npq", own, blocks)
