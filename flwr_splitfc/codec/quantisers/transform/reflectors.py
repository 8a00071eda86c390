"""The vectors of the reflections that make a KLT: how they are found and sent.

Let X (n, samples) be the data and q_0, q_1, ... the eigenvectors of X X^T, those of the
largest eigenvalues first. The Householder QR decomposition of the first r of them is::

    [q_0 ... q_(r-1)] = H_0 H_1 ... H_(r-1) R,    H_k = I - 2 w_k w_k^T / (w_k^T w_k)

R is diagonal with entries of 1 or -1, for the q are orthonormal. So the first r columns
of the product of reflections are the leading directions, up to their signs; the other
columns complete the basis. Entries of w_k before entry k are zero. The length of w_k
makes no difference: it is scaled to a length of 32 and rounded to integers.

See docs/splitfc-rd.md, "The method", 2, and docs/wire-format.md, section 14.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from flwr_splitfc.codec.arrays import Ints
from flwr_splitfc.codec.channels import LARGEST_KLT
from flwr_splitfc.codec.errors import PayloadError
from flwr_splitfc.codec.format.bits import Run, symbol_runs
from flwr_splitfc.codec.format.symbols import SymbolReader
from flwr_splitfc.codec.quantisers.transform.integer_codes import (
    read_signed,
    signed_runs,
)

REFLECTOR_STEPS = 32
"""The length of a vector, and so the largest magnitude of its integer entries."""


class Worth(NamedTuple):
    """How many directions of a transform are worth their reflections.

    Parameters
    ----------
    every : int
        One direction in so many is found; the others complete the basis.
    most : int
        What there is time for.
    """

    every: int
    most: int


FEW_CHANNELS = Worth(every=4, most=32)
FEW_ROWS = Worth(every=4, most=8)
MANY_CHANNELS = Worth(every=1, most=64)

_BUDGET_SHARE = 8
"""The channels' reflections take at most an eighth of a budget, the rows' another."""

REFLECTOR_ENTRY_BITS = 3.3
"""About what an entry of a vector takes."""


def reflectors_worthwhile(size: int, budget_bytes: int, worth: Worth) -> int:
    """Return how many reflections of so many channels or rows to send.

    >>> reflectors_worthwhile(64, budget_bytes=13107, worth=FEW_CHANNELS)
    16
    >>> reflectors_worthwhile(64, budget_bytes=800, worth=FEW_CHANNELS)
    3
    """
    if size > LARGEST_KLT:
        return 0
    reflector_bits = REFLECTOR_ENTRY_BITS * size
    affordable = int(8 * budget_bytes / (_BUDGET_SHARE * reflector_bits))
    # the last direction is what the others leave
    useful = min(size // worth.every, size - 1)
    return max(0, min(useful, worth.most, affordable))


def no_reflectors(size: int) -> Ints:
    """Return the vectors (n, 0) that leave n channels or rows as they are."""
    return np.zeros((size, 0), np.int64)


def fit_reflectors(samples: Tensor, count: int) -> Ints:
    """Find the reflections whose product starts with the data's leading directions.

    Parameters
    ----------
    samples : Tensor of shape (n, samples)
        float32; a direction is a combination of the n rows.
    count : int
        ``r``, how many directions.

    Returns
    -------
    ndarray of shape (n, r)
        The vectors ``w_k`` as columns. Column k is zero above row k and positive in
        row k: LAPACK's vectors start with 1, and none is longer than sqrt(2).
    """
    size = len(samples)
    if count == 0:
        return no_reflectors(size)
    leading = _leading_directions(samples, count)
    packed, _ = torch.geqrf(leading)
    # what LAPACK leaves out of its vectors: the 1 on the diagonal, the zeros above
    ones = torch.eye(size, count, dtype=packed.dtype, device=packed.device)
    vectors = packed.tril(-1) + ones
    lengths = vectors.norm(dim=0)
    scaled = vectors * (REFLECTOR_STEPS / lengths)
    rounded: Ints = scaled.round().long().numpy()
    return rounded


def _leading_directions(samples: Tensor, count: int) -> Tensor:
    """Return the (n, r) eigenvectors of the second moment's largest eigenvalues."""
    second_moment = (samples @ samples.T).cpu()
    eigenvectors = _eigenvectors(second_moment)
    if eigenvectors is None:
        eigenvectors = _robust_eigenvectors(second_moment)
    # the largest eigenvalue is the last
    largest_first: Tensor = eigenvectors.flip(1)
    return largest_first[:, :count]


def _eigenvectors(second_moment: Tensor) -> Tensor | None:
    """Return the (n, n) eigenvectors; None where LAPACK finds none.

    For a matrix of very low rank it does not converge on some machines, and now and
    then it returns NaN instead of saying so.
    """
    try:
        eigenvectors: Tensor = torch.linalg.eigh(second_moment).eigenvectors
    except RuntimeError:  # torch.linalg.LinAlgError, which has no type stub
        return None
    return eigenvectors if eigenvectors.isfinite().all() else None


def _robust_eigenvectors(second_moment: Tensor) -> Tensor:
    """Return the (n, n) eigenvectors, those of the largest eigenvalues last."""
    # a little white noise: no eigenvalue is zero, the directions stay what they are
    size = len(second_moment)
    scaled = second_moment.double() / second_moment.trace().double()
    identity = torch.eye(size, dtype=scaled.dtype, device=scaled.device)
    noise = 1e-9 * identity
    eigenvectors = _eigenvectors(scaled + noise)
    if eigenvectors is None:
        # any orthonormal basis will do, only worse: the channels or rows themselves
        order = scaled.diagonal().argsort()
        eigenvectors = identity[:, order]
    return eigenvectors.float()


def reflector_runs(vectors: Ints) -> Iterator[Run]:
    """Yield (n, r) vectors: first entries of all, then the others vector by vector."""
    if vectors.size == 0:
        return
    yield from symbol_runs(np.diagonal(vectors), REFLECTOR_STEPS + 1)
    below = [vector[k + 1 :] for k, vector in enumerate(vectors.T)]
    yield from signed_runs(np.concatenate(below), REFLECTOR_STEPS)


def read_reflectors(reader: SymbolReader, size: int, count: int) -> Ints:
    """Read the (n, r) vectors that `reflector_runs` wrote.

    Raises
    ------
    PayloadError
        If so many channels or rows have not so many reflections, or a vector is zero.
    """
    if count == 0:
        return no_reflectors(size)
    if not count < size <= LARGEST_KLT:
        raise PayloadError(
            f"{count} reflections of {size} channels or rows; "
            f"at most {LARGEST_KLT} are reflected"
        )
    by_vector = np.zeros((count, size), np.int64)
    first_entries = reader.read(count, REFLECTOR_STEPS + 1)
    np.fill_diagonal(by_vector, first_entries)
    numbers = np.arange(count)[:, None]
    below = np.arange(size) > numbers
    entries = int(below.sum())
    by_vector[below] = read_signed(reader, entries, REFLECTOR_STEPS)
    if not by_vector.any(axis=1).all():
        raise PayloadError("a reflection's vector is zero")
    return by_vector.T
