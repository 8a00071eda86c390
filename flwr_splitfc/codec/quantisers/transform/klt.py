"""The Karhunen-Loeve transform (KLT) over the channels, or over the rows.

A KLT writes vectors x of n entries, one for each channel or row, in a basis in which
their energy gathers in few directions::

    y = U^T x,    x = U y,    U = H_0 H_1 ... H_(r-1)
    H_k = I - 2 w_k w_k^T / (w_k^T w_k)

The ``w_k`` are the r integer vectors of `reflectors`, which travel with every payload.
U is orthonormal whatever they are: where they are rounded, directions are a little off
and less energy gathers in them, but nothing is lost.

The encoder multiplies by U^T in float32. The decoder builds U in fixed-point numbers of
2^-14, from the last reflection to the first; it starts with 2^14 times the identity::

    t = w^T U
    U = U - (4 w t + n) // (2 n),    n = w^T w

which is the reflection with ``2 w t / n`` rounded, halves up. Then it computes ``x =
round(U y / 2^14)``. See docs/splitfc-rd.md, "The method", 2, and docs/wire-format.md,
section 14, "Values".
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from flwr_splitfc.codec.arrays import Doubles, Ints
from flwr_splitfc.codec.quantisers.transform.fixed_point import whole

KLT_BITS = 14
"""Entries of the decoder's matrix are in units of ``2^-14``."""


def klt_matrix(vectors: Ints, directions: Ints) -> Tensor:
    """Return columns of U as integers of ``2^-14`` in float64.

    Parameters
    ----------
    vectors : ndarray of shape (n, r)
        The vectors of the reflections; column k is zero above row k.
    directions : ndarray of shape (L,)
        The columns that are wanted, ascending.

    Returns
    -------
    Tensor of shape (n, L)
    """
    size, count = vectors.shape
    product = _unit_columns(size, directions)
    doubles = vectors.astype(np.float64)
    for k in reversed(range(count)):
        # H_k changes rows from k on, where columns of directions before k are zero yet
        column = np.searchsorted(directions, k)
        w = doubles[k:, k]
        _reflect(product[k:, column:], w)
    return torch.from_numpy(product)


def _unit_columns(size: int, directions: Ints) -> Doubles:
    """Return columns of the identity, in units of ``2^-14``."""
    columns = len(directions)
    product = np.zeros((size, columns))
    product[directions, np.arange(columns)] = 2.0**KLT_BITS
    return product


def _reflect(rows: Doubles, w: Doubles) -> None:
    """Apply the reflection of w to rows of U, in place."""
    # n = w^T w and t = w^T U
    square = w @ w
    projection = w @ rows
    # 4 w t + n, where the n rounds halves up
    numerator = np.outer(4 * w, projection)
    numerator += square
    # numbers stay below 2^37, so a quotient in float64 falls on the right side of every
    # integer
    numerator /= 2 * square
    rows -= np.floor(numerator, out=numerator)


def to_directions(parts: Tensor, vectors: Ints) -> Tensor:
    """Multiply float32 (..., n, f) by U^T; no vector may be zero."""
    size, count = vectors.shape
    if count == 0:
        return parts
    w, a = _compact(vectors)
    w = w.to(parts)
    a = a.to(parts)
    if 2 * count < size:
        # few reflections: two products that are narrow
        return parts - w @ (a @ parts)
    identity = torch.eye(size, dtype=parts.dtype, device=parts.device)
    transposed = identity - w @ a
    return transposed @ parts


def _compact(vectors: Ints) -> tuple[Tensor, Tensor]:
    """Return the w (n, r) and a (r, n) with which ``U^T = I - w a``.

    With W the vectors as columns, and L the lower triangle of W^T W with half of its
    diagonal, ``U^T = I - W L^-1 W^T`` (Joffrain et al., TOMS 32(2), 2006, "UT
    transform").
    """
    w = torch.from_numpy(vectors).double()
    triangle = (w.T @ w).tril()
    triangle.diagonal().div_(2)
    a = torch.linalg.solve_triangular(triangle, w.T, upper=False)
    return w, a


def from_directions(parts: Tensor, vectors: Ints, directions: Ints) -> Tensor:
    """Multiply integers in float64 by U, and round to integers.

    Parameters
    ----------
    parts : Tensor of shape (..., L, f)
        The directions that are named; the others are zero.
    vectors : ndarray of shape (n, r)
    directions : ndarray of shape (L,)
        Ascending.

    Returns
    -------
    Tensor of shape (..., n, f)
    """
    if vectors.size == 0:
        return _with_zero_directions(parts, directions, len(vectors))
    matrix = klt_matrix(vectors, directions) / 2**KLT_BITS
    return whole(matrix @ parts)


def _with_zero_directions(parts: Tensor, directions: Ints, size: int) -> Tensor:
    """Put (..., L, f) in their places among (..., n, f) zeros."""
    *before, _, places = parts.shape
    whole = parts.new_zeros(*before, size, places)
    at = torch.from_numpy(directions)
    return whole.index_copy_(-2, at, parts)
