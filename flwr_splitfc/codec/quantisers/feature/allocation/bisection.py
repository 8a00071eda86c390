"""The multiplier that spends the bits of a split (SplitFC, Sec. V).

The levels at a multiplier ``m`` are those at the price ``nu`` of a bit for which
``m = step^2 ln2 / (2 nu)``: water filling, in which every column gets levels until one
more is not worth its bits. The larger ``m``, the more levels and bits. The paper solves
the budget (9) for real numbers of levels; here the levels are integers, and ``m`` is
bisected until a single level of a single span makes the difference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from flwr_splitfc.codec.arrays import Doubles, Ints
from flwr_splitfc.codec.format.symbols import MOST_LEVELS, level_bits
from flwr_splitfc.codec.quantisers.feature.allocation.split_search import (
    SplitChoice,
    coarse_multipliers,
)
from flwr_splitfc.codec.quantisers.feature.allocation.splits import Splits
from flwr_splitfc.codec.quantisers.feature.levels import best_level, span_squares


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


class _Point(NamedTuple):
    """A multiplier, and the levels that it gives to each of the `_Rivals`."""

    multiplier: float
    levels: Ints


@dataclass(frozen=True, eq=False)
class _Rivals:
    """What competes for the bits of a split: each span in use and, last, the means.

    Parameters
    ----------
    squares : ndarray
        ``n^2``, by which ``u = m n^2``.
    symbols : ndarray
        How many symbols have the levels of the rival.
    most_levels : ndarray
        The levels that a rival can have.
    """

    squares: Doubles
    symbols: Doubles
    most_levels: Ints

    @classmethod
    def of(cls, splits: Splits, way: int) -> _Rivals:
        counts = splits.span_counts[way]
        spans = np.flatnonzero(counts)
        # a column of one point has no entries to code
        spans = spans[spans > 0]
        entries = splits.rows * counts[spans]
        entry_limits = np.full(len(spans), MOST_LEVELS)
        return cls(
            squares=np.append(span_squares()[spans], splits.mean_squares[way]),
            symbols=np.append(entries, splits.mean_counts[way]),
            most_levels=np.append(entry_limits, splits.most_mean_levels[way]),
        )

    def at(self, multiplier: float) -> _Point:
        """Share the bits out at a multiplier."""
        # (11), rounded by (15)
        levels = best_level(self.squares * multiplier)
        return _Point(multiplier, np.minimum(levels, self.most_levels))

    def bits(self, point: _Point) -> float:
        """Bits of all symbols."""
        bits_each = level_bits()[point.levels]
        return float(self.symbols @ bits_each)


def allot_bits(splits: Splits, choice: SplitChoice) -> Allotment:
    """Spend the bits of the chosen split on entries and means.

    The result is the last multiplier within the budget. It may leave bits over; they
    are for upgrades.
    """
    way = choice.way
    rivals = _Rivals.of(splits, way)
    bits_available = float(splits.symbol_bits[way])
    point = _bisect(
        rivals,
        bits_available,
        affordable=rivals.at(_coarse_multiplier(choice.multiplier_index)),
        too_high=rivals.at(_coarse_multiplier(choice.multiplier_index + 1)),
    )
    # the means are the last rival
    means = float(splits.mean_counts[way])
    mean_levels = int(point.levels[-1]) if means else 1
    mean_bits = means * float(level_bits()[mean_levels])
    return Allotment(
        multiplier=point.multiplier,
        mean_levels=mean_levels,
        entry_bits=bits_available - mean_bits,
    )


def _coarse_multiplier(index: int) -> float:
    """A multiplier of the coarse scale, or its last beyond the end."""
    scale = coarse_multipliers()
    return float(scale[min(index, len(scale) - 1)])


def _bisect(
    rivals: _Rivals, bits_available: float, affordable: _Point, too_high: _Point
) -> _Point:
    """Narrow down to the last multiplier within the budget."""
    # a multiplier in between would give the same levels as one of the two
    while (too_high.levels - affordable.levels).sum() > 1:
        middle = rivals.at(_middle(affordable.multiplier, too_high.multiplier))
        # float32 has no number in between
        if not affordable.multiplier < middle.multiplier < too_high.multiplier:
            break
        if rivals.bits(middle) <= bits_available:
            affordable = middle
        else:
            too_high = middle
    return affordable


def _middle(low: float, high: float) -> float:
    """The multiplier halfway, as float32: what the header can carry."""
    middle = np.float32((low + high) / 2)
    return float(middle)
