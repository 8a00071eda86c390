"""Orthonormal transforms: a DCT over each channel's map, a KLT over the channels, and one over the samples.

What a decoder does is exact: integers, held in float64 where a matrix product is
wanted, whose sums stay below 2^53, so that neither the order of a sum nor the machine
matters. Encoders work in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import cos, pi, sqrt

import numpy as np
import torch
from torch import Tensor

from flwr_splitfc.codec.arrays import Ints

LONGEST_DCT = 64
"""An axis is transformed in blocks of its largest divisor up to this."""

REFLECTOR_STEPS = 32
"""Entries of a reflection's vector are integers of at most this magnitude, which is also the vector's length."""

LARGEST_KLT = 512
"""Channels or rows beyond which there is none: it takes the square of them."""

_DCT_BITS, _KLT_BITS = 12, 14


# DCT


@lru_cache
def dct_matrix(length: int) -> Tensor:
    """DCT-II, orthonormal, as integers of 2^-12 in float64; row k is frequency k.

    >>> dct_matrix(2)
    tensor([[ 2896.,  2896.],
            [ 2896., -2896.]], dtype=torch.float64)
    """
    waves = [
        [cos(pi * (2 * place + 1) * k / (2 * length)) for place in range(length)]
        for k in range(length)
    ]
    scales = [sqrt((2 if k else 1) / length) * 2**_DCT_BITS for k in range(length)]
    return torch.tensor(
        [
            [round(scale * wave) for wave in row]
            for scale, row in zip(scales, waves, strict=True)
        ]
    ).double()


@lru_cache
def dct_length(size: int) -> int:
    """Of the blocks in which an axis is transformed: its largest divisor up to 64."""
    return next(
        length for length in range(min(size, LONGEST_DCT), 0, -1) if size % length == 0
    )


def to_frequencies(parts: Tensor, axes: Sequence[int]) -> Tensor:
    """DCT of float32 (B, C, f) along each axis of the map."""
    return _along_axes(
        parts, axes, lambda length: dct_matrix(length).float() / 2**_DCT_BITS
    )


def from_frequencies(parts: Tensor, axes: Sequence[int]) -> Tensor:
    """The inverse for integers in float64 (B, C, f), rounded to integers after each axis."""
    return _along_axes(
        parts, axes, lambda length: dct_matrix(length).T, shift=_DCT_BITS
    )


def _along_axes(
    parts: Tensor,
    axes: Sequence[int],
    matrix_of: Callable[[int], Tensor],
    shift: int = 0,
) -> Tensor:
    shape, after = parts.shape, parts.shape[2]
    for size in axes:
        after //= size
        length = dct_length(size)
        if length > 1:
            blocks = parts.reshape(-1, length, after)
            parts = _rounded(
                torch.einsum("pk,nkq->npq", matrix_of(length).to(parts.device), blocks),
                shift,
            )
    return parts.reshape(shape).contiguous()


def _rounded(values: Tensor, bits: int) -> Tensor:
    """Integers divided by 2^bits, rounded to integers, halves up."""
    return values if bits == 0 else values.mul_(2.0**-bits).add_(0.5).floor_()


# KLT


def fit_reflectors(samples: Tensor, count: int) -> Ints:
    """Vectors of the reflections that carry the leading directions of float32 (n, samples) to the first of n.

    Integers (n, count), column k zero above row k: eigenvectors of the second moment,
    as the Householder vectors of their QR decomposition.
    """
    size = len(samples)
    if count == 0:
        return np.zeros((size, 0), np.int64)
    directions = torch.linalg.eigh((samples @ samples.T).cpu()).eigenvectors.flip(1)[
        :, :count
    ]
    lower = torch.geqrf(directions)[0].tril(-1) + torch.eye(size, count)
    vectors: Ints = (
        (lower * (REFLECTOR_STEPS / lower.norm(dim=0))).round().long().numpy()
    )
    return vectors


def klt_matrix(vectors: Ints, directions: Ints) -> Tensor:
    """The product of the reflections as integers of 2^-14 in float64 (n, L), of ascending directions alone.

    ``H_0 H_1 ...`` is built from the last, each ``H = I - 2 w w^T / w^T w`` with its
    product rounded, halves up. Numbers stay below 2^37, so a float64 quotient is on the
    right side of every integer.
    """
    product = (directions == np.arange(len(vectors))[:, None]) * 2.0**_KLT_BITS
    for k in reversed(range(vectors.shape[1])):
        w, rest = (
            vectors[k:, k].astype(np.float64),
            product[k:, np.searchsorted(directions, k) :],
        )
        square = w @ w
        rest -= np.floor((np.outer(4 * w, w @ rest) + square) / (2 * square))
    return torch.from_numpy(product)


def to_directions(parts: Tensor, vectors: Ints) -> Tensor:
    """float32 (..., n, f) by the directions of these reflections, whose first entries are not zero."""
    if vectors.size == 0:
        return parts
    w = torch.from_numpy(vectors / vectors.diagonal()).float()
    transposed = torch.ormqr(
        w, 2 / w.square().sum(0), torch.eye(len(w)), transpose=True
    )
    moved: Tensor = transposed.to(parts) @ parts
    return moved


def from_directions(parts: Tensor, vectors: Ints, directions: Ints) -> Tensor:
    """The inverse for integers in float64, (..., L, f) of the L directions that are named; the others are zero."""
    if vectors.size == 0:
        at = torch.from_numpy(directions)
        return parts.new_zeros(
            *parts.shape[:-2], len(vectors), parts.shape[-1]
        ).index_copy_(-2, at, parts)
    return _rounded(klt_matrix(vectors, directions) @ parts, _KLT_BITS)
