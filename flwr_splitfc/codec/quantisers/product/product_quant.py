"""Product quantisation (FedLite: Wang et al., 2201.11865)."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, isfinite
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from flwr_splitfc.codec.errors import PayloadError
from flwr_splitfc.codec.format.symbols import (
    SymbolReader,
    level_bits,
    pack_symbols,
    stream_bytes,
)
from flwr_splitfc.codec.quantisers.product.header import (
    codebook_bytes,
    pack_codebook,
    unpack_codebook,
)
from flwr_splitfc.codec.quantisers.product.kmeans import (
    moved_centroids,
    nearest_centroids,
    squared_error,
    trained_centroids,
)
from flwr_splitfc.codec.quantisers.quantiser import Quantiser
from flwr_splitfc.codec.statistics import check_entries, half_scale, to_half

_MOST_CENTROIDS = 256
"""Bounds the time; an index takes at most 8 bits."""

_VECTORS_PER_CENTROID, _SAMPLE_ENTRIES, _SAMPLE_STEPS = 16, 2**15, 5
"""Least size of the sample that centroids are trained on, and the steps; the last step goes over all vectors."""

_TRIAL_ENTRIES = 2**16


class Division(NamedTuple):
    """How the rows of a (B, K) matrix are cut and shared out.

    Parameters
    ----------
    length : int
        Entries of a subvector; ``q = ceil(K / length)`` of them make a row, the last
        one filled up with zeros.
    groups : int
        ``R``: position j in a row belongs to group ``j R // q``.
    centroids : int
        ``L``, of each group.
    """

    length: int
    groups: int
    centroids: int

    def payload_bytes(self, rows: int, columns: int) -> int:
        """Enough for the payload, but for rare cases."""
        indices = rows * ceil(columns / self.length) if self.centroids > 1 else 0
        return codebook_bytes(*self) + stream_bytes(
            indices, float(level_bits()[self.centroids])
        )

    def vectors(self, matrix: Tensor) -> list[Tensor]:
        """The subvectors of each group, (N, d), row by row."""
        rows, columns = matrix.shape
        positions = ceil(columns / self.length)
        missing = positions * self.length - columns
        cut = (pad(matrix, (0, missing)) if missing else matrix).reshape(
            rows, positions, self.length
        )
        ends = [
            -(-group * positions // self.groups) for group in range(self.groups + 1)
        ]
        return [
            cut[:, start:end].reshape(-1, self.length) for start, end in pairwise(ends)
        ]


@dataclass(frozen=True)
class ProductQuant(Quantiser):
    """Replaces pieces of each row by the nearest of a few centroids (FedLite).

    A row is cut into ``q`` subvectors. Those in a group of neighbouring positions, of
    all rows, share ``L`` centroids, found by k-means for each batch. The centroids are
    sent as float16 in units of a power of two, an index takes ``log2 L`` bits. Lengths
    of a subvector of 1, 2, 4, ... and ``K`` entries are tried on a sample, each with
    the most centroids that the budget pays for, until the error rises.

    The paper sends the gradient as it is; here it is quantised in the same way, since
    budgets bind both ways.

    Parameters
    ----------
    groups : int
        ``R``, at least 1, which the paper finds best.
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
                f"correction must be a finite number of at least 0, got {self.correction}"
            )

    @property
    def gradient_correction(self) -> float:
        return self.correction

    def encode(self, matrix: Tensor, budget_bytes: int) -> bytes:
        check_entries(matrix)
        if matrix.shape[1] == 0:
            return b""
        scale = half_scale(matrix)
        scaled = matrix / scale
        division, centroids = self._trained(scaled, budget_bytes)
        groups = division.vectors(scaled)
        centroids = [
            to_half(moved_centroids(*group), scale)
            for group in zip(groups, centroids, strict=True)
        ]
        while True:
            data = _pack(groups, centroids, scale, len(matrix))
            if len(data) <= budget_bytes or len(centroids[0]) == 1:
                return data
            centroids = [group[:-1] for group in centroids]

    def decode(self, data: memoryview, rows: int, columns: int) -> Tensor:
        if columns == 0:
            if len(data):
                raise PayloadError(f"payload of no column has {len(data)} bytes")
            return torch.zeros(rows, 0)
        codebook, stream = unpack_codebook(data, rows, columns)
        groups, count, length = codebook.shape
        positions = ceil(columns / length)
        reader = SymbolReader(stream)
        indices = np.zeros((rows, positions), np.int32)
        if count > 1:
            indices = reader.read(rows * positions, count).reshape(rows, positions)
        reader.close()
        indices += (np.arange(positions) * groups // positions * count).astype(np.int32)
        vectors = codebook.view(-1, length).index_select(
            0, torch.from_numpy(indices).view(-1)
        )
        return vectors.view(rows, -1)[:, :columns].contiguous()

    def smallest_bytes(self, rows: int, columns: int) -> int:
        """One value in each group."""
        return self._smallest(columns).payload_bytes(rows, columns) if columns else 0

    def _smallest(self, columns: int) -> Division:
        return Division(1, min(self.groups, columns), 1)

    def _trained(
        self, scaled: Tensor, budget_bytes: int
    ) -> tuple[Division, list[Tensor]]:
        """The best division, and centroids from a sample."""
        rows, columns = scaled.shape
        generator = torch.Generator().manual_seed(0)
        trial = _sample(scaled, _TRIAL_ENTRIES // columns + 1, generator)
        best, least = None, float("inf")
        for division in self._divisions(rows, columns, budget_bytes):
            trained = [
                _train(group, division.centroids, generator)
                for group in division.vectors(scaled)
            ]
            error = sum(map(squared_error, division.vectors(trial), trained))
            if best is not None and error >= least:
                break
            best, least = (division, trained), error
        assert best is not None
        return best

    def _divisions(self, rows: int, columns: int, budget_bytes: int) -> list[Division]:
        """Those to try, by length: with several centroids, else the longest, else the smallest."""
        lengths = [
            *(1 << power for power in range((columns - 1).bit_length())),
            columns,
        ]
        largest = [
            self._largest(length, rows, columns, budget_bytes) for length in lengths
        ]
        several = [division for division in largest if division.centroids > 1]
        single = [division for division in largest if division.centroids == 1]
        return several or single[-1:] or [self._smallest(columns)]

    def _largest(
        self, length: int, rows: int, columns: int, budget_bytes: int
    ) -> Division:
        """With as many centroids as the budget pays for, or none."""
        positions = ceil(columns / length)
        groups = min(self.groups, positions)
        most = min(
            _MOST_CENTROIDS,
            rows * (positions // groups),
            rows * columns // (groups * length),
        )

        def too_many(centroids: int) -> bool:
            return (
                Division(length, groups, centroids).payload_bytes(rows, columns)
                > budget_bytes
            )

        return Division(
            length, groups, bisect_left(range(1, most + 1), True, key=too_many)
        )


def _train(vectors: Tensor, centroids: int, generator: torch.Generator) -> Tensor:
    wanted = max(_VECTORS_PER_CENTROID * centroids, _SAMPLE_ENTRIES // vectors.shape[1])
    sample = _sample(vectors, wanted, generator)
    return trained_centroids(sample, centroids, _SAMPLE_STEPS, generator)


def _sample(vectors: Tensor, wanted: int, generator: torch.Generator) -> Tensor:
    """So many vectors, some of them twice, or all if there are fewer."""
    if len(vectors) <= wanted:
        return vectors
    return vectors[
        torch.randint(len(vectors), (wanted,), generator=generator).to(vectors.device)
    ]


def _pack(
    groups: list[Tensor], centroids: list[Tensor], scale: float, rows: int
) -> bytes:
    codebook = torch.stack(centroids)
    data = pack_codebook(codebook.cpu().numpy(), scale)
    if codebook.shape[1] == 1:
        return data
    labels = [
        nearest_centroids(group, own.float())
        for group, own in zip(groups, centroids, strict=True)
    ]
    indices = (
        torch.cat([own.view(rows, -1) for own in labels], 1).int().cpu().numpy().ravel()
    )
    return data + pack_symbols([(indices, codebook.shape[1])])
