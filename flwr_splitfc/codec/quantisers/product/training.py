"""The choice of a division, by centroids that are trained on samples.

Divisions are tried by length until the error on a sample of the matrix rises. The error
falls first, as longer subvectors make use of what entries have in common, and then
rises, as their centroids become too few.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from flwr_splitfc.codec.quantisers.product.division import Division
from flwr_splitfc.codec.quantisers.product.kmeans import (
    squared_error,
    trained_centroids,
)

_VECTORS_PER_CENTROID = 16
"""Vectors in the sample that centroids are trained on, at least, ..."""

_SAMPLE_ENTRIES = 2**15
"""... and entries in it."""

_SAMPLE_STEPS = 5
"""Steps of Lloyd's algorithm on the sample; one over all vectors follows elsewhere."""

_TRIAL_ENTRIES = 2**16
"""Entries in the rows on which the divisions' errors are compared."""


class Trained(NamedTuple):
    """A division, and (L, d) centroids of each of its groups."""

    division: Division
    centroids: list[Tensor]


def train_best(matrix: Tensor, divisions: Iterable[Division]) -> Trained:
    """Train divisions of a (B, K) matrix in turn, and return the best.

    The first whose error is not below that of the one before ends the search.
    """
    generator = torch.Generator().manual_seed(0)
    columns = matrix.shape[1]
    trial = _sample(matrix, _TRIAL_ENTRIES // columns + 1, generator)
    best: Trained | None = None
    least_error = float("inf")
    for division in divisions:
        trained = _train(matrix, division, generator)
        error = _trial_error(trial, trained)
        if best is not None and error >= least_error:
            break
        best = trained
        least_error = error
    assert best is not None  # there is at least one division
    return best


def _train(matrix: Tensor, division: Division, generator: torch.Generator) -> Trained:
    """Train the centroids of each group on a sample of its vectors."""
    wanted = max(
        _VECTORS_PER_CENTROID * division.centroids, _SAMPLE_ENTRIES // division.length
    )
    by_group = []
    for vectors in division.vectors(matrix):
        centroids = trained_centroids(
            _sample(vectors, wanted, generator),
            count=division.centroids,
            steps=_SAMPLE_STEPS,
            generator=generator,
        )
        by_group.append(centroids)
    return Trained(division, by_group)


def _trial_error(trial: Tensor, trained: Trained) -> float:
    """Return the squared error of a sample of the rows."""
    groups = trained.division.vectors(trial)
    return sum(map(squared_error, groups, trained.centroids))


def _sample(vectors: Tensor, wanted: int, generator: torch.Generator) -> Tensor:
    """Draw so many vectors, with replacement, or take all if there are no more."""
    if len(vectors) <= wanted:
        return vectors
    drawn = torch.randint(len(vectors), (wanted,), generator=generator, device="cpu")
    return vectors[drawn.to(vectors.device)]
