"""The levels of all columns, as sender and receiver find them (SplitFC, Sec. V).

Both know the multiplier ``m`` and each column's span ``n`` in steps of the endpoint
grid. A column has

    q = floor_level(m n^2)

levels, or one more if it is upgraded. The multiplier at which an upgrade is worth its
bits is

    w = S[q] / n^2                                                              (16)

Columns are upgraded in the order of (w, column): the `first` of them and, because the
next one may cost more bits than are left, `more` of those that follow after `skipped`
others. Without upgrades bits would be left over, as columns of equal span change their
levels together. S and the number (16) are those of docs/splitfc.md.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flwr_splitfc.codec.arrays import Doubles, Ints
from flwr_splitfc.codec.compiled import compiled
from flwr_splitfc.codec.format.symbols import MOST_LEVELS
from flwr_splitfc.codec.quantisers.feature.header import ENDPOINT_LEVELS, Upgrades
from flwr_splitfc.codec.quantisers.feature.levels import (
    FEWEST_LEVELS,
    floor_level,
    span_squares,
    upgrade_thresholds,
)

_NEVER = 255
"""The rank of what cannot be upgraded: after that of every span."""


class _SpanTable(NamedTuple):
    """What a multiplier means for columns that span n = 0 ... 199 grid steps.

    Parameters
    ----------
    levels : ndarray
        Without an upgrade, int64.
    ranks : ndarray
        How many spans have a lower ``w``, uint8: numpy sorts integers of 8 bits in
        linear time. `_NEVER` for columns that cannot be upgraded: one of span 0 has no
        entries to code, one of 2^16 levels has no level more.
    """

    levels: Ints
    ranks: NDArray[np.uint8]


# sender and receiver ask for the same multiplier several times in a row
@lru_cache(64)
def _span_table(multiplier: float) -> _SpanTable:
    levels = floor_level(multiplier * span_squares())
    ranks = _ranks(levels, upgrade_thresholds())
    # a column of one point
    levels[0] = 1
    return _SpanTable(levels, ranks)


@compiled
def _ranks(levels: Ints, thresholds: Doubles) -> NDArray[np.uint8]:
    worth = np.empty(ENDPOINT_LEVELS)
    worth[0] = np.inf
    for span in range(1, ENDPOINT_LEVELS):
        worth[span] = np.inf
        if levels[span] < MOST_LEVELS:
            # (16)
            worth[span] = thresholds[levels[span] - FEWEST_LEVELS] / span**2
    ranks = np.empty(ENDPOINT_LEVELS, np.uint8)
    for span in range(ENDPOINT_LEVELS):
        lower = 0
        for other in range(ENDPOINT_LEVELS):
            lower += worth[other] < worth[span]
        ranks[span] = lower if worth[span] < np.inf else _NEVER
    return ranks


def upgrade_order(spans: Ints, multiplier: float) -> Ints:
    """Return the columns that can be upgraded, in the order in which they are.

    Parameters
    ----------
    spans : ndarray
        Span of each column in grid steps, 0 ... 199.
    multiplier : float
        ``m``.
    """
    return _upgrade_order(spans, _span_table(multiplier).ranks)


@compiled
def _upgrade_order(spans: Ints, ranks: NDArray[np.uint8]) -> Ints:
    begins = _begins(spans, ranks)
    order = np.empty(begins[_NEVER], np.int64)
    for column, span in enumerate(spans):
        rank = ranks[span]
        if rank < _NEVER:
            order[begins[rank]] = column
            begins[rank] += 1
    return order


@compiled
def _begins(spans: Ints, ranks: NDArray[np.uint8]) -> Ints:
    """How many columns have a lower rank than 0 ... 255."""
    begins = np.zeros(_NEVER + 2, np.int64)
    for span in spans:
        # 8 bits have no 256
        begins[int(ranks[span]) + 1] += 1
    for rank in range(1, len(begins)):
        begins[rank] += begins[rank - 1]
    return begins


def column_levels(spans: Ints, multiplier: float, upgrades: Upgrades) -> Ints:
    """Return the levels of each column: 1 for columns of zero span, else 2 ... 2^16.

    Raises
    ------
    ValueError
        If there are more upgrades than columns to upgrade.

    Examples
    --------
    >>> column_levels(np.array([199, 0, 100, 100]), 1e-3, Upgrades(first=2)).tolist()
    [8, 1, 5, 4]
    """
    table = _span_table(multiplier)
    levels, upgradable = _column_levels(spans, table, upgrades)
    if sum(upgrades) > upgradable:
        raise ValueError(f"{sum(upgrades)} upgrades of {upgradable} columns")
    return levels


@compiled
def _column_levels(
    spans: Ints, table: _SpanTable, upgrades: Upgrades
) -> tuple[Ints, int]:
    """Return the levels, and how many columns can be upgraded."""
    # where each column is in the order is as good as the order
    place_of = _begins(spans, table.ranks)
    upgradable = place_of[_NEVER]
    resume = upgrades.first + upgrades.skipped
    levels = np.empty(len(spans), np.int64)
    for column, span in enumerate(spans):
        rank = table.ranks[span]
        place = place_of[rank]
        place_of[rank] += 1
        is_upgraded = place < upgrades.first or resume <= place < resume + upgrades.more
        levels[column] = table.levels[span] + (is_upgraded and rank < _NEVER)
    return levels, upgradable
