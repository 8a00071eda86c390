"""k-means (Lloyd's algorithm), in blocks that bound the memory; the same vectors give the same centroids."""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK_DISTANCES = 2**18


def nearest_centroids(vectors: Tensor, centroids: Tensor) -> Tensor:
    """The nearest of (L, d) centroids for each of (N, d) vectors, int64 (N,).

    >>> nearest_centroids(torch.tensor([[0.0], [9.0], [4.0]]), torch.tensor([[8.0], [1.0]])).tolist()
    [1, 0, 1]
    """
    half_squares = centroids.square().sum(1).div_(2)
    blocks = vectors.split(max(1, _BLOCK_DISTANCES // len(centroids)))
    return torch.cat(
        [
            torch.addmm(half_squares, block, centroids.T, alpha=-1).argmin(1)
            for block in blocks
        ]
    )


def moved_centroids(vectors: Tensor, centroids: Tensor) -> Tensor:
    """One step of Lloyd's algorithm: each centroid to the mean of its vectors, one without any to a far vector."""
    labels = nearest_centroids(vectors, centroids)
    counts = torch.bincount(labels, minlength=len(centroids))
    sums = torch.zeros_like(centroids).index_add_(0, labels, vectors)
    moved = sums.div_(counts.clamp(min=1)[:, None])
    empty = (counts == 0).nonzero().flatten()
    if len(empty):
        errors = (vectors - centroids[labels]).square_().sum(1)
        moved[empty] = vectors[errors.topk(len(empty)).indices]
    return moved


def trained_centroids(
    vectors: Tensor, count: int, steps: int, generator: torch.Generator
) -> Tensor:
    """Centroids (L, d) of at least as many vectors, from some of the vectors in a few steps."""
    centroids = vectors[
        torch.randperm(len(vectors), generator=generator)[:count].to(vectors.device)
    ]
    for _ in range(steps):
        centroids = moved_centroids(vectors, centroids)
    return centroids


def squared_error(vectors: Tensor, centroids: Tensor) -> float:
    """Of all vectors, each replaced by its nearest centroid.

    >>> squared_error(torch.tensor([[0.0, 0.0], [3.0, 1.0]]), torch.tensor([[0.0, 0.0], [3.0, 3.0]]))
    4.0
    """
    return float(
        (vectors - centroids[nearest_centroids(vectors, centroids)]).square_().sum()
    )
