"""The multiplier that spends the bits of a split (SplitFC, Sec. V).

The levels at a multiplier ``m`` are those at the price ``nu`` of a bit for which
``m = step^2 ln2 / (2 nu)``: water filling, in which every column gets levels until one
more is not worth its bits. The larger ``m``, the more levels and bits. The paper solves
the budget (9) for real numbers of levels; here the levels are integers, and ``m`` is
bisected until a single level of a single span makes the difference.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from flwr_splitfc.codec.arrays import Doubles, Ints
from flwr_splitfc.codec.compiled import compiled
from flwr_splitfc.codec.format.symbols import MOST_LEVELS, level_bits
from flwr_splitfc.codec.quantisers.feature.allocation.split_search import (
    Split,
    SplitChoice,
)
from flwr_splitfc.codec.quantisers.feature.levels import (
    FEWEST_LEVELS,
    upgrade_thresholds,
)


class Allotment(NamedTuple):
    """How the bits of a split are shared between entries and means.

    Parameters
    ----------
    multiplier : float
        ``m``, exact in float32.
    mean_levels : int
        ``Q_0``, 1 if the means cost no bits.
    entry_bits : float
        What is left for the entries.
    """

    multiplier: float
    mean_levels: int
    entry_bits: float


class _Rivals(NamedTuple):
    """What competes for the bits of a split: each span in use and, last, the means.

    Parameters
    ----------
    squares : ndarray
        ``n^2``, by which ``u = m n^2``.
    symbols : ndarray
        How many symbols have the levels of the rival, float64.
    most_levels : ndarray
        The levels that a rival can have.
    """

    squares: Doubles
    symbols: Doubles
    most_levels: Ints


def allot_bits(choice: SplitChoice) -> Allotment:
    """Spend the bits of the chosen split on entries and means.

    The result is the last multiplier within the budget. It may leave bits over; they
    are for upgrades.
    """
    return _allot_bits(choice, upgrade_thresholds(), level_bits())


@compiled
def _allot_bits(
    choice: SplitChoice, thresholds: Doubles, level_bits: Doubles
) -> Allotment:
    split = choice.split
    rivals = _rivals(split)
    affordable, too_high = choice.affordable, choice.too_high
    fewest = np.empty(len(rivals.symbols), np.int64)
    fewest[:] = FEWEST_LEVELS
    levels = _levels(rivals, affordable, thresholds, fewest, rivals.most_levels)
    most = _levels(rivals, too_high, thresholds, levels, rivals.most_levels)
    # a multiplier in between would give the same levels as one of the two
    while _differ(levels, most):
        # halfway, as float32: what the header can carry
        middle = np.float64(np.float32((affordable + too_high) / 2))
        # float32 has no number in between
        if not affordable < middle < too_high:
            break
        between = _levels(rivals, middle, thresholds, levels, most)
        if _bits(rivals, between, level_bits) <= split.symbol_bits:
            affordable, levels = middle, between
        else:
            too_high, most = middle, between
    # the means are the last rival
    mean_levels = int(levels[-1]) if split.mean_count > 0 else 1
    mean_bits = split.mean_count * level_bits[mean_levels]
    return Allotment(affordable, mean_levels, split.symbol_bits - mean_bits)


@compiled
def _differ(levels: Ints, most: Ints) -> bool:
    """Whether they do by more than a single level."""
    difference = 0
    for rival in range(len(levels)):
        difference += most[rival] - levels[rival]
    return difference > 1


@compiled
def _rivals(split: Split) -> _Rivals:
    count = len(split.spans) + 1
    squares = np.empty(count)
    symbols = np.empty(count)
    most_levels = np.empty(count, np.int64)
    most_levels[:] = MOST_LEVELS
    for rival, span in enumerate(split.spans):
        squares[rival] = span**2
        symbols[rival] = split.rows * split.span_counts[rival]
    squares[-1] = split.mean_square
    symbols[-1] = split.mean_count
    most_levels[-1] = split.most_mean_levels
    return _Rivals(squares, symbols, most_levels)


@compiled
def _levels(
    rivals: _Rivals, multiplier: float, thresholds: Doubles, least: Ints, most: Ints
) -> Ints:
    """Levels at a multiplier: (11), rounded by (15), within what is known of them."""
    levels = np.empty_like(least)
    for rival in range(len(levels)):
        fewest = least[rival]
        candidates = thresholds[fewest - FEWEST_LEVELS : most[rival] - FEWEST_LEVELS]
        u = rivals.squares[rival] * multiplier
        levels[rival] = fewest + np.searchsorted(candidates, u, side="right")
    return levels


@compiled
def _bits(rivals: _Rivals, levels: Ints, level_bits: Doubles) -> float:
    """Bits of all symbols."""
    total = 0.0
    for rival, symbols in enumerate(rivals.symbols):
        total += symbols * level_bits[levels[rival]]
    return total
