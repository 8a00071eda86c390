"""Product quantisation (FedLite: Wang et al., 2201.11865).

A subvector x of a row is sent as the index of its nearest centroid::

    index(x) = argmin over l of |x - c_l|^2

and decoded to that centroid. `division` has what is shared out and what it costs,
`kmeans` and `training` how centroids are found. See docs/wire-format.md, section 12.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

import numpy as np
import torch
from torch import Tensor

from flwr_splitfc.codec.arrays import Symbols
from flwr_splitfc.codec.errors import PayloadError
from flwr_splitfc.codec.format.symbols import SymbolReader, pack_symbols
from flwr_splitfc.codec.quantisers.product.division import (
    Division,
    divisions_to_try,
    smallest_division,
)
from flwr_splitfc.codec.quantisers.product.header import pack_codebook, unpack_codebook
from flwr_splitfc.codec.quantisers.product.kmeans import (
    moved_centroids,
    nearest_centroids,
)
from flwr_splitfc.codec.quantisers.product.training import train_best
from flwr_splitfc.codec.quantisers.quantiser import Quantiser
from flwr_splitfc.codec.statistics import check_entries, half_scale, to_half


@dataclass(frozen=True)
class ProductQuant(Quantiser):
    """Replaces pieces of each row by the nearest of a few centroids (FedLite).

    A row is cut into ``q`` subvectors. Those in a group of neighbouring positions, of
    all rows, share ``L`` centroids, found by k-means for each batch. The centroids are
    sent as float16 in units of a power of two; an index takes ``log2 L`` bits. Lengths
    of a subvector of 1, 2, 4, ... and ``K`` entries are tried on a sample, each with
    the most centroids that the budget pays for, until the error rises.

    The paper sends the gradient as it is. Here it is quantised in the same way, since
    budgets bind both ways.

    Parameters
    ----------
    groups : int
        ``R``, at least 1. The paper finds 1 best.
    correction : float
        ``lambda`` of the paper's gradient correction: the device adds ``lambda (z -
        z~)`` to the gradient by its features ``z``, of which the server saw ``z~``.
        That is the gradient of ``lambda / 2 |z - z~|^2``, beside the loss of the whole
        batch. The paper tunes it for each task. The default was the best power of ten
        for a small MNIST network with a mean over 256 rows; 0 is for none.

    Examples
    --------
    >>> matrix = torch.tensor([[1.0, 2.0, 1.0, 2.0], [5.0, 5.0, 1.0, 2.0]])
    >>> payload = ProductQuant().encode(matrix, budget_bytes=40)
    >>> ProductQuant().decode(memoryview(payload), 2, 4)
    tensor([[1., 2., 1., 2.],
            [5., 5., 1., 2.]])
    """

    groups: int = 1
    correction: float = 1e-4

    def __post_init__(self) -> None:
        if self.groups < 1:
            raise ValueError(f"groups must be at least 1, got {self.groups}")
        if not (isfinite(self.correction) and self.correction >= 0):
            raise ValueError(
                "correction must be a finite number of at least 0, "
                f"got {self.correction}"
            )

    @property
    def gradient_correction(self) -> float:
        return self.correction

    def encode(self, matrix: Tensor, budget_bytes: int) -> bytes:
        check_entries(matrix)
        rows, columns = matrix.shape
        if columns == 0:
            return b""
        scale = half_scale(matrix)
        scaled = matrix / scale
        divisions = divisions_to_try(rows, columns, self.groups, budget_bytes)
        trained = train_best(scaled, divisions)
        groups = trained.division.vectors(scaled)
        # the centroids are of a sample: one more step, over all vectors
        codebook = []
        for vectors, sampled in zip(groups, trained.centroids, strict=True):
            centroids = moved_centroids(vectors, sampled)
            codebook.append(to_half(centroids, scale))
        return _pack_within(budget_bytes, groups, codebook, scale, rows)

    def decode(self, data: memoryview, rows: int, columns: int) -> Tensor:
        if columns == 0:
            if len(data):
                raise PayloadError(f"payload of no column has {len(data)} bytes")
            return torch.zeros(rows, 0, dtype=torch.float32, device="cpu")
        codebook, stream = unpack_codebook(data, rows, columns)
        groups, count, length = codebook.shape
        division = Division(length, groups, count)
        positions = division.positions(columns)
        indices = _read_indices(stream, rows, positions, count)
        # from a centroid's index in its group to its index among all
        group_of = np.arange(positions) * groups // positions
        first_centroids = group_of * count
        indices += first_centroids.astype(np.int32)
        chosen = torch.from_numpy(indices).view(-1)
        centroids = codebook.view(-1, length)  # (groups L, d)
        vectors = centroids.index_select(0, chosen)  # (B q, d)
        filled_rows = vectors.view(rows, -1)
        return filled_rows[:, :columns].contiguous()

    def smallest_bytes(self, rows: int, columns: int) -> int:
        """Return the bytes of one value for each group."""
        if columns == 0:
            return 0
        smallest = smallest_division(columns, self.groups)
        return smallest.payload_bytes(rows, columns)


def _read_indices(stream: memoryview, rows: int, positions: int, count: int) -> Symbols:
    """Read the (B, q) indices within their groups; a single centroid has none."""
    reader = SymbolReader(stream)
    if count == 1:
        indices = np.zeros(rows * positions, np.int32)
    else:
        indices = reader.read(rows * positions, count)
    reader.close()
    return indices.reshape(rows, positions)


def _pack_within(
    budget_bytes: int,
    groups: list[Tensor],
    codebook: list[Tensor],
    scale: float,
    rows: int,
) -> bytes:
    """Return a payload within the budget, if need be with fewer centroids.

    Parameters
    ----------
    groups : list of Tensor
        The (N, d) vectors of each group, in units of `scale`.
    codebook : list of Tensor
        The (L, d) centroids of each group, float16.
    """
    while True:
        data = _pack(groups, codebook, scale, rows)
        if len(data) <= budget_bytes or len(codebook[0]) == 1:
            return data
        # the estimate of the bytes was too low, which is rare
        codebook = [centroids[:-1] for centroids in codebook]


def _pack(
    groups: list[Tensor], codebook: list[Tensor], scale: float, rows: int
) -> bytes:
    """Return the payload with these centroids."""
    stacked = torch.stack(codebook)
    count = stacked.shape[1]
    data = pack_codebook(stacked.cpu().numpy(), scale)
    if count == 1:
        return data
    labels = []
    for vectors, centroids in zip(groups, codebook, strict=True):
        nearest = nearest_centroids(vectors, centroids.float())
        labels.append(nearest.view(rows, -1))
    by_row = torch.cat(labels, 1).int()
    indices = by_row.cpu().numpy().ravel()
    return data + pack_symbols([(indices, count)])
