"""The split with the least error bound (SplitFC, Sec. V).

For each way to split the columns, a coarse scale of multipliers is searched for the
last one whose levels the budget pays for. The error bound (10) is read between that
multiplier and the next, at the share of the bits that is left:

    E = (1 - share) E(m) + share E(next m)
    share = (bits that are left) / (bits from m to the next)

Levels here are `levels.best_level`: what upgrades come to on average.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np

from flwr_splitfc.codec.arrays import Doubles, Ints
from flwr_splitfc.codec.format.symbols import level_bits
from flwr_splitfc.codec.quantisers.feature.allocation.splits import Splits
from flwr_splitfc.codec.quantisers.feature.levels import best_level, span_squares

_LEAST_EXPONENT, _EXPONENTS_END = -16, 33
_PER_OCTAVE = 4

_SEARCH_STEPS = 128, 64, 32, 16, 8, 4, 2, 1
"""They add up to 255, more than there are multipliers."""


@cache
def coarse_multipliers() -> Doubles:
    """Return the scale of multipliers, exact in float32 as the sent one has to be.

    At its low end every span has 2 levels, at its high end 2^16.
    """
    exponents = np.arange(_LEAST_EXPONENT, _EXPONENTS_END, 1 / _PER_OCTAVE)
    # rounded once, here, so that it is the sent one that is tried
    multipliers = np.asarray(2.0**exponents, np.float32)
    return multipliers.astype(np.float64)


def following_index(index: Ints) -> Ints:
    """Return the next index into `coarse_multipliers`; the last has none."""
    last = len(coarse_multipliers()) - 1
    return np.minimum(index + 1, last)


@dataclass(frozen=True, eq=False)
class _SpanTable:
    """One entry's bits and error bound, by multiplier and span: (multipliers, 200).

    Errors are in squared grid steps, ``n^2 / (4 (Q - 1)^2)``.
    """

    bits: Doubles
    errors: Doubles


@cache
def _span_table() -> _SpanTable:
    multipliers = coarse_multipliers()[:, None]
    levels = best_level(multipliers * span_squares())
    bits = level_bits()[levels]
    # columns of one point have no entries to code
    bits[:, 0] = 0.0
    # first term of (10) for one entry
    errors = span_squares() / (4.0 * (levels - 1) ** 2)
    return _SpanTable(bits, errors)


class SplitChoice(NamedTuple):
    """The best way to split, and the last coarse multiplier that it can afford.

    Parameters
    ----------
    way : int
        Index into the arrays of `Splits`.
    multiplier_index : int
        Index into `coarse_multipliers`.
    """

    way: int
    multiplier_index: int


class _Trial(NamedTuple):
    """Each split at a coarse multiplier of its own.

    `at` has an index into `coarse_multipliers` for each way.
    """

    splits: Splits
    at: Ints

    @property
    def mean_levels(self) -> Ints:
        """Levels of the means, ``Q_0``."""
        # (11) for u_0 = m n_0^2
        multipliers = coarse_multipliers()[self.at]
        levels = best_level(self.splits.mean_squares * multipliers)
        return np.minimum(levels, self.splits.most_mean_levels)

    @property
    def bits(self) -> Doubles:
        """Bits of all entries and means."""
        # left side of (9) without side information
        row_bits = self._sum_over_columns(_span_table().bits)
        entry_bits = self.splits.rows * row_bits
        mean_bits = self.splits.mean_counts * level_bits()[self.mean_levels]
        bits: Doubles = entry_bits + mean_bits
        return bits

    @property
    def error(self) -> Doubles:
        """First and third term of (10), in squared units."""
        row_error = self._sum_over_columns(_span_table().errors)
        entry_error = self.splits.rows * row_error
        # B a_0^2 / 2 = n_0^2 / 4
        squares = self.splits.mean_counts * self.splits.mean_squares
        mean_error = squares / (4 * (self.mean_levels - 1.0) ** 2)
        error: Doubles = entry_error + mean_error
        return error

    def _sum_over_columns(self, table: Doubles) -> Doubles:
        """Sum a table by multiplier and span over the two-stage columns of each way."""
        counts = self.splits.span_counts
        total: Doubles = np.einsum("cn,cn->c", counts, table[self.at])
        return total


def best_split(splits: Splits) -> SplitChoice:
    """Find the split whose error bound is the least."""
    affordable = _last_affordable(splits)
    following = _Trial(splits, following_index(affordable.at))
    share = _share_of_next(affordable, following)
    # ways differ in their grid steps
    squared_units = splits.unit**2
    error = (1 - share) * (affordable.error * squared_units)
    error += share * (following.error * squared_units)
    # second term of (10)
    error += splits.mean_error
    way = int(np.argmin(error))
    return SplitChoice(way, multiplier_index=int(affordable.at[way]))


def _last_affordable(splits: Splits) -> _Trial:
    """The largest multiplier of each way whose bits the budget has, by bisection."""
    last = len(coarse_multipliers()) - 1
    index = np.zeros_like(splits.counts)
    # all ways at once: each goes up by a step if it can afford it
    for step in _SEARCH_STEPS:
        higher = _Trial(splits, np.minimum(index + step, last))
        fits = higher.bits <= splits.symbol_bits
        index = np.where(fits, higher.at, index)
    return _Trial(splits, index)


def _share_of_next(affordable: _Trial, following: _Trial) -> Doubles:
    """Part of the way from one multiplier to the next that the bits left pay for."""
    spent = affordable.bits
    left = affordable.splits.symbol_bits - spent
    extra = following.bits - spent
    # no share where one more multiplier changes nothing, as at the end of the scale
    share = np.zeros_like(left)
    np.divide(left, extra, out=share, where=extra > 0)
    return np.clip(share, 0, 1)
