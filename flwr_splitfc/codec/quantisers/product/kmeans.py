"""k-means by Lloyd's algorithm; the same vectors give the same centroids.

A step moves each centroid c_l to the mean of the vectors that it is nearest to::

    label(x) = argmin over l of |x - c_l|^2
             = argmin over l of |c_l|^2 / 2 - x c_l
    c_l      = mean of the x with label(x) = l

The second form of the distance is a matrix product, and leaves out ``|x|^2``, which is
the same for all l.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK_DISTANCES = 2**18
"""Distances that are computed at a time, which bounds the memory."""


def nearest_centroids(vectors: Tensor, centroids: Tensor) -> Tensor:
    """Return which of the centroids is nearest to each vector.

    Parameters
    ----------
    vectors : Tensor of shape (N, d)
    centroids : Tensor of shape (L, d)

    Returns
    -------
    Tensor of shape (N,)
        int64.

    Examples
    --------
    >>> centroids = torch.tensor([[8.0], [1.0]])
    >>> nearest_centroids(torch.tensor([[0.0], [9.0], [4.0]]), centroids).tolist()
    [1, 0, 1]
    """
    squares = centroids.square().sum(1)
    half_squares = squares.div_(2)
    transposed = centroids.T
    block_vectors = max(1, _BLOCK_DISTANCES // len(centroids))
    labels = []
    for block in vectors.split(block_vectors):
        distances = torch.addmm(half_squares, block, transposed, alpha=-1)
        labels.append(distances.argmin(1))
    return torch.cat(labels)


def moved_centroids(vectors: Tensor, centroids: Tensor) -> Tensor:
    """Make one step of Lloyd's algorithm.

    A centroid that no vector is nearest to moves to a vector that is far from its own.
    """
    labels = nearest_centroids(vectors, centroids)
    counts = torch.bincount(labels, minlength=len(centroids))
    sums = torch.zeros_like(centroids)
    sums.index_add_(0, labels, vectors)
    # those without any vector are set below
    divisors = counts.clamp(min=1)
    means = sums.div_(divisors[:, None])
    unused = (counts == 0).nonzero().flatten()
    if len(unused):
        errors = vectors - centroids[labels]
        distances = errors.square_().sum(1)
        farthest = distances.topk(len(unused)).indices
        means[unused] = vectors[farthest]
    return means


def trained_centroids(
    vectors: Tensor, count: int, steps: int, generator: torch.Generator
) -> Tensor:
    """Find (L, d) centroids in a few steps from L vectors drawn without replacement.

    Parameters
    ----------
    vectors : Tensor of shape (N, d)
        At least as many as centroids.
    count : int
        ``L``.
    steps : int
    generator : torch.Generator
        On the CPU.
    """
    order = torch.randperm(len(vectors), generator=generator, device="cpu")
    drawn = order[:count].to(vectors.device)
    centroids = vectors[drawn]
    for _ in range(steps):
        centroids = moved_centroids(vectors, centroids)
    return centroids


def squared_error(vectors: Tensor, centroids: Tensor) -> float:
    """Return the error of all vectors, each replaced by its nearest centroid.

    >>> vectors = torch.tensor([[0.0, 0.0], [3.0, 1.0]])
    >>> squared_error(vectors, torch.tensor([[0.0, 0.0], [3.0, 3.0]]))
    4.0
    """
    labels = nearest_centroids(vectors, centroids)
    errors = vectors - centroids[labels]
    return float(errors.square_().sum())
