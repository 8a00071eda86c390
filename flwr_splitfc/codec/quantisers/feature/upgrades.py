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
from flwr_splitfc.codec.quantisers.feature.header import (
    ENDPOINT_LEVELS,
    NO_UPGRADES,
    Upgrades,
)
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
    worth = np.full(ENDPOINT_LEVELS, np.inf)
    for span in range(1, ENDPOINT_LEVELS):
        if levels[span] < MOST_LEVELS:
            # (16)
            worth[span] = thresholds[levels[span] - FEWEST_LEVELS] / span**2
    ranks = np.full(ENDPOINT_LEVELS, _NEVER, np.uint8)
    for span in range(ENDPOINT_LEVELS):
        if worth[span] < np.inf:
            ranks[span] = np.sum(worth < worth[span])
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
    ranks = _span_table(multiplier).ranks[spans]
    # stable: columns of equal worth keep their order
    order = np.argsort(ranks, kind="stable")
    return order[: np.count_nonzero(ranks < _NEVER)]


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
    levels = _span_table(multiplier).levels[spans]
    if upgrades != NO_UPGRADES:
        order = upgrade_order(spans, multiplier)
        levels[_upgraded(order, upgrades)] += 1
    return levels


def _upgraded(order: Ints, upgrades: Upgrades) -> Ints:
    """The columns that `upgrades` picks from those in `order`."""
    end = sum(upgrades)
    if end > len(order):
        raise ValueError(f"{end} upgrades of {len(order)} columns")
    first = order[: upgrades.first]
    more = order[upgrades.first + upgrades.skipped : end]
    return np.concatenate([first, more])
