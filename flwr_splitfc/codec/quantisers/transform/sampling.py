"""Parts of a batch, where a part tells as much as the whole and takes less time."""

from __future__ import annotations

from math import ceil

from torch import Tensor

_KLT_ENTRIES = 2**18
"""Entries from which the second moment of the channels, or of the rows, is taken."""

_SEARCH_ENTRIES = 2**16
"""Entries on which a step is tried, and of which centroids are the means."""

_COMPARED_ENTRIES = 2**14
"""Entries by which two transforms are compared."""

_QUANTILE_ENTRIES = 2**12
"""Entries among which a quantile is looked for."""


def channel_samples(parts: Tensor) -> Tensor:
    """Return (C, samples) of (B, C, f): whole rows, evenly spread."""
    every = _stride(parts, _KLT_ENTRIES)
    some = parts[::every]
    by_channel = some.transpose(0, 1)
    return by_channel.flatten(1)


def row_samples(matrix: Tensor) -> Tensor:
    """Return (B, samples) of (B, D): whole columns, evenly spread."""
    stride = _stride(matrix, _KLT_ENTRIES)
    every = _odd(stride)
    return matrix[:, ::every]


def spread_rows(values: Tensor) -> Tensor:
    """Return some rows of (B, C, f), evenly spread.

    The leading directions of the rows come first; so they have their share, no more.
    """
    return _spread(values, _SEARCH_ENTRIES, dim=0)


def spread_part(values: Tensor) -> Tensor:
    """Return some of the rows or of the channels of (B, C, f), whichever are more.

    Among many, the leading directions have about their share.
    """
    rows, channels, _ = values.shape
    dim = 0 if rows >= channels else 1
    return _spread(values, _COMPARED_ENTRIES, dim)


def exceeded_magnitude(values: Tensor, count: int) -> float:
    """Return the magnitude that about `count` of the values exceed."""
    every = _odd(_stride(values, _QUANTILE_ENTRIES))
    some = values.flatten()[::every]
    magnitudes = some.abs()
    seen = len(some)
    exceeding = round(count * seen / values.numel())
    # kthvalue counts from the smallest, which is 1
    rank = max(seen - exceeding, 1)
    quantile = magnitudes.kthvalue(rank)
    return float(quantile.values)


def _spread(values: Tensor, entries: int, dim: int) -> Tensor:
    """Return about so many entries, of places that are evenly spread along `dim`."""
    wanted = _stride(values, entries)
    # one place at least
    every = min(wanted, values.shape[dim])
    first = every // 2
    spread = values.transpose(0, dim)[first::every]
    return spread.transpose(0, dim)


def _stride(values: Tensor, entries: int) -> int:
    """Return n for which every n-th of the values are about so many entries."""
    return ceil(values.numel() / entries)


def _odd(every: int) -> int:
    """Make a stride odd: maps have even sizes mostly, and no place is then left out."""
    return every | 1
