"""How many levels a column gets (SplitFC, Sec. V).

The optimal real number of levels solves ``(Q - 1)^3 = u Q``. What is sent are integers,
found by table look-ups: IEEE arithmetic and comparisons alone, so that every machine
finds the same ones.

The receiver knows the multiplier ``m`` and of each column the span ``n`` in grid steps:
``u = m n^2``. It takes the integer part of the closed form and then one level more for
some columns: in the order of (multiplier at which that level is worth its bits, column)
the first few and, because the next level may cost more bits than are left, a few more
after skipping some.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import ArrayLike

from flwr_splitfc.codec.arrays import Doubles, Ints
from flwr_splitfc.codec.format.symbols import MOST_LEVELS
from flwr_splitfc.codec.quantisers.feature.header import ENDPOINT_LEVELS, Upgrades

_CARDANO_LIMIT = 27 / 4
_LOG_TERMS = 14


def optimal_level(u: ArrayLike) -> Doubles:
    """The root above 1 of ``(Q - 1)^3 = u Q``: the optimal real number of levels.

    By Cardano's formula up to ``u = 27/4``, by the cosine of a third of an angle above.
    The reference for the tables; it is not bit-exact across machines and no byte
    depends on it.

    Parameters
    ----------
    u : array_like
        ``a^2 ln2 / (2 nu)`` of a column with interval ``a`` at the multiplier ``nu``;
        positive.

    Examples
    --------
    >>> optimal_level([0.001, 0.5, 1, 6.75, 10, 1000]).round(7).tolist()
    [1.1033321, 2.0, 2.324718, 4.0, 4.5770894, 33.1113935]
    """
    u = np.asarray(u, np.float64)
    low, high = np.minimum(u, _CARDANO_LIMIT), np.maximum(u, _CARDANO_LIMIT)
    v = np.cbrt(9 * low + low * np.sqrt(np.maximum(81 - 12 * low, 0)))
    cardano = 1 + np.cbrt(2 / 3) * low / v + v / np.cbrt(18)
    cosine = 1 + 2 * np.sqrt(high / 3) * np.cos(np.arccos(1.5 * np.sqrt(3 / high)) / 3)
    return np.asarray(np.where(u <= _CARDANO_LIMIT, cardano, cosine))


@cache
def closed_form_thresholds() -> Doubles:
    """``T[q] = (q - 1)^3 / q``, where the closed form reaches q, for q = 2 ... 2^16 at index q - 2."""
    q = np.arange(2, MOST_LEVELS + 1, dtype=np.float64)
    return (q - 1) * (q - 1) * (q - 1) / q


@cache
def upgrade_thresholds() -> Doubles:
    """``S[q]``, the u from which a level more than q is worth its bits, for q = 2 ... 2^16 - 1 at q - 2.

    ``2 ln((q+1)/q) ((q-1) q)^2 / (2q-1)``: the step's error over its bits, in the units
    of u. Convexity puts it between ``T[q]`` and ``T[q+1]``: the best integer is the
    closed form's integer part or one more.
    """
    q = np.arange(2, MOST_LEVELS, dtype=np.float64)
    step = (q - 1) * q
    return 2 * _log_next_over(q) * (step * step) / (2 * q - 1)


def _log_next_over(q: Doubles) -> Doubles:
    """``ln((q+1)/q) = 2 atanh(1 / (2q+1))`` by its series: libm's logarithms differ between machines."""
    z = 1 / (2 * q + 1)
    square = z * z
    total = np.zeros_like(q)
    for k in reversed(range(_LOG_TERMS)):
        total = total * square + 1 / (2 * k + 1)
    return 2 * z * total


@cache
def span_squares() -> Doubles:
    """``n^2`` of a column that spans n grid steps, for n = 0 ... 199."""
    return np.arange(ENDPOINT_LEVELS, dtype=np.float64) ** 2


def floor_level(u: ArrayLike) -> Ints:
    """Integer part of `optimal_level`, clipped to 2 ... 2^16.

    >>> floor_level([0.001, 0.5, 6.75, 1000, 1e12]).tolist()
    [2, 2, 4, 33, 65536]
    """
    reached = np.searchsorted(closed_form_thresholds(), u, side="right")
    return np.maximum(reached + 1, 2)


def best_level(u: ArrayLike) -> Ints:
    """The integer that minimises error plus multiplier times bits, in 2 ... 2^16."""
    return np.asarray(np.searchsorted(upgrade_thresholds(), u, side="right") + 2)


def upgrade_multipliers(multiplier: float) -> Doubles:
    """At which multiplier a column of n grid steps deserves a level more than the floor, for n = 0 ... 199.

    Infinite where there is no level more.
    """
    floors = floor_level(multiplier * span_squares())
    thresholds = upgrade_thresholds().take(floors - 2, mode="clip")
    with np.errstate(divide="ignore"):
        return np.where(floors < MOST_LEVELS, thresholds / span_squares(), np.inf)


def upgrade_order(steps: Ints, multiplier: float) -> Ints:
    """Columns that can be upgraded, in the order in which they are.

    Parameters
    ----------
    steps : ndarray
        Span of each column in grid steps, 0 ... 199.
    multiplier : float
        ``m``.
    """
    worth = upgrade_multipliers(multiplier)
    # small integers sort in linear time
    rank = np.searchsorted(np.sort(worth), worth).astype(np.uint8)
    order = np.argsort(rank[steps], kind="stable")
    return order[: np.count_nonzero(np.isfinite(worth)[steps])]


def column_levels(steps: Ints, multiplier: float, upgrades: Upgrades) -> Ints:
    """Levels of each column: 1 for columns of zero span, else 2 ... 2^16.

    Raises
    ------
    ValueError
        If there are more upgrades than columns to upgrade.

    Examples
    --------
    >>> column_levels(np.array([199, 0, 100, 100]), 1e-3, Upgrades(first=2)).tolist()
    [8, 1, 5, 4]
    """
    floors = floor_level(multiplier * span_squares())
    floors[0] = 1
    levels = floors[steps]
    if any(upgrades):
        order = upgrade_order(steps, multiplier)
        if sum(upgrades) > len(order):
            raise ValueError(f"{sum(upgrades)} upgrades of {len(order)} columns")
        levels[order[: upgrades.first]] += 1
        levels[order[upgrades.first + upgrades.skipped : sum(upgrades)]] += 1
    return levels
