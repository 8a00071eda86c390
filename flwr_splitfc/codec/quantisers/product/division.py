"""How a matrix is divided into subvectors and groups, and what that costs.

The rows of a (B, K) matrix are cut into ``q = ceil(K / d)`` subvectors of d entries.
Position j in a row belongs to group ``j R // q`` of R groups. A group has L centroids
of d float16 entries, and each subvector an index of log2 L bits::

    bytes = fields + 2 R L d + B q log2(L) / 8

For each length d, L is the largest number that the budget pays for. See Wang et al.,
FedLite (2201.11865), and docs/wire-format.md, section 12.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import pairwise
from math import ceil
from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import pad

from flwr_splitfc.codec.format.symbols import level_bits, stream_bytes
from flwr_splitfc.codec.quantisers.product.header import codebook_bytes

_MOST_CENTROIDS = 256
"""Bounds the time; an index takes at most 8 bits."""


class Division(NamedTuple):
    """How the rows of a (B, K) matrix are cut and shared out.

    Parameters
    ----------
    length : int
        ``d``, entries of a subvector; the last one of a row is filled up with zeros.
    groups : int
        ``R``.
    centroids : int
        ``L``, of each group.
    """

    length: int
    groups: int
    centroids: int

    def positions(self, columns: int) -> int:
        """Return the subvectors of a row, ``q``."""
        return ceil(columns / self.length)

    def payload_bytes(self, rows: int, columns: int) -> int:
        """Return bytes that are enough for the payload, but for rare cases."""
        codebook = codebook_bytes(self.length, self.groups, self.centroids)
        if self.centroids == 1:
            return codebook
        index_bits = float(level_bits()[self.centroids])
        return codebook + stream_bytes(rows * self.positions(columns), index_bits)

    def vectors(self, matrix: Tensor) -> list[Tensor]:
        """Return the subvectors of each group, (N, d), row by row."""
        rows, columns = matrix.shape
        positions = self.positions(columns)
        missing = positions * self.length - columns
        filled = pad(matrix, (0, missing)) if missing else matrix
        subvectors = filled.reshape(rows, positions, self.length)
        by_group = []
        for start, end in pairwise(self._bounds(positions)):
            own = subvectors[:, start:end]
            by_group.append(own.reshape(-1, self.length))
        return by_group

    def _bounds(self, positions: int) -> list[int]:
        """Return the first position of each group, and the number of positions."""
        bounds = []
        for group in range(self.groups + 1):
            # j R // q reaches the group's number at j = ceil(group q / R)
            bounds.append(-(-group * positions // self.groups))
        return bounds


def smallest_division(columns: int, groups: int) -> Division:
    """Return the division of the smallest payload: one value for each group."""
    return Division(length=1, groups=min(groups, columns), centroids=1)


def divisions_to_try(
    rows: int, columns: int, groups: int, budget_bytes: int
) -> list[Division]:
    """Return the divisions that are worth a try, by length, at least one.

    These are all that the budget pays several centroids for. If there are none, it is
    the longest with a single centroid, and if there is none of these, either, it is the
    smallest division of all.
    """
    several = []
    single = []
    for length in _lengths(columns):
        division = _largest_division(length, rows, columns, groups, budget_bytes)
        if division.centroids > 1:
            several.append(division)
        elif division.centroids == 1:
            single.append(division)
    if several:
        return several
    if single:
        return single[-1:]
    return [smallest_division(columns, groups)]


def _lengths(columns: int) -> list[int]:
    """Return 1, 2, 4, ... below the number of columns, and that number."""
    powers = (columns - 1).bit_length()
    return [*(1 << power for power in range(powers)), columns]


def _largest_division(
    length: int, rows: int, columns: int, groups: int, budget_bytes: int
) -> Division:
    """Return the division with the most centroids that the budget pays for, or 0."""
    positions = ceil(columns / length)
    own_groups = min(groups, positions)
    most = min(
        _MOST_CENTROIDS,
        # the vectors of the smallest group
        rows * (positions // own_groups),
        # what the format allows
        rows * columns // (own_groups * length),
    )

    def is_too_long(centroids: int) -> bool:
        division = Division(length, own_groups, centroids)
        return division.payload_bytes(rows, columns) > budget_bytes

    # payloads grow with the centroids: so many come before the first that is too long
    affordable = bisect_left(range(1, most + 1), True, key=is_too_long)
    return Division(length, own_groups, affordable)
