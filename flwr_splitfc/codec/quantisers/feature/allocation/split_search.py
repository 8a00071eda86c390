"""The split with the least error bound (SplitFC, Sec. V).

What a split loses is at most

    E = sum_{i <= M} B a_i^2 / (4 (Q_i - 1)^2)              two-stage columns
      + sum_{i > M} B range_i^2 / 2                         means instead of entries
      + (K - M) B a_0^2 / (2 (Q_0 - 1)^2)                   rounding of the means  (10)

where ``a_i = n_i step`` and ``a_0`` is the span of the means. For each way to split the
columns, a coarse scale of multipliers is searched for the last one whose levels the
budget pays for. The error bound is read between that multiplier and the next, at the
share of the bits that is left:

    E = (1 - share) E(m) + share E(next m)
    share = (bits that are left) / (bits from m to the next)

Levels here are `levels.best_level`: what upgrades come to on average.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from flwr_splitfc.codec.arrays import Doubles, Ints
from flwr_splitfc.codec.compiled import compiled
from flwr_splitfc.codec.format.symbols import level_bits
from flwr_splitfc.codec.quantisers.feature.allocation.splits import Splits
from flwr_splitfc.codec.quantisers.feature.header import ENDPOINT_LEVELS
from flwr_splitfc.codec.quantisers.feature.levels import (
    FEWEST_LEVELS,
    best_level,
    span_squares,
    upgrade_thresholds,
)

_LEAST_EXPONENT, _EXPONENTS_END = -16, 33
_PER_OCTAVE = 4

_SEARCH_STEPS = 128, 64, 32, 16, 8, 4, 2, 1
"""They add up to 255, more than there are multipliers."""


class Split(NamedTuple):
    """One way to split the columns.

    Parameters
    ----------
    rows : int
        ``B``.
    two_stage : int
        ``M``.
    grid_low, grid_high : float
        Ends of the endpoint grid: extremes of the two-stage columns; 0 for none.
    unit : float
        The grid step, the unit of spans; the span of the means where all two-stage
        columns are one point.
    spans, span_counts : ndarray
        The spans in use, int64 from 1 on, and how many two-stage columns have each,
        float64.
    mean_low, mean_high : float
        Ends of the grid for means: extremes of the other columns' means; 0 for none.
    mean_count : int
        Means that cost bits: none where all means are equal.
    mean_square : float
        ``n_0^2 = 2 B (a_0 / unit)^2``, with which (11) has ``u_0 = m n_0^2``.
    most_mean_levels : int
        The most levels for means that leave two levels for every entry.
    symbol_bits : float
        Bits for entries and means.
    """

    rows: int
    two_stage: int
    grid_low: float
    grid_high: float
    unit: float
    spans: Ints
    span_counts: Doubles
    mean_low: float
    mean_high: float
    mean_count: int
    mean_square: float
    most_mean_levels: int
    symbol_bits: float


class SplitChoice(NamedTuple):
    """The best way to split, and the last coarse multiplier that it can afford.

    `too_high` is the multiplier after that, or the same at the end of the scale.
    """

    split: Split
    affordable: float
    too_high: float


class _Tables(NamedTuple):
    """Numbers that are the same for all matrices.

    Parameters
    ----------
    multipliers : ndarray
        The coarse scale, exact in float32 as the sent one has to be. At its low end
        every span has 2 levels, at its high end 2^16.
    bits, errors : ndarray
        One entry's bits and error bound, by multiplier and span. Errors are in squared
        grid steps, ``n^2 / (4 (Q - 1)^2)``.
    level_bits, thresholds : ndarray
        `symbols.level_bits` and (15).
    """

    multipliers: Doubles
    bits: Doubles
    errors: Doubles
    level_bits: Doubles
    thresholds: Doubles


@cache
def _tables() -> _Tables:
    exponents = np.arange(_LEAST_EXPONENT, _EXPONENTS_END, 1 / _PER_OCTAVE)
    # rounded once, here, so that it is the sent one that is tried
    multipliers = np.asarray(2.0**exponents, np.float32).astype(np.float64)
    levels = best_level(multipliers[:, None] * span_squares())
    bits = level_bits()[levels]
    # first term of (10) for one entry
    errors = span_squares() / (4.0 * (levels - 1) ** 2)
    return _Tables(multipliers, bits, errors, level_bits(), upgrade_thresholds())


def best_split(splits: Splits) -> SplitChoice:
    """Find the split whose error bound is the least."""
    return _best_split(splits, _tables())


@compiled
def _best_split(splits: Splits, tables: _Tables) -> SplitChoice:
    last = len(tables.multipliers) - 1
    least_error = np.inf
    for way in range(len(splits.counts)):
        split = _split(splits, way, tables.level_bits)
        index = _last_affordable(split, tables)
        following = min(index + 1, last)
        share = _share_of_next(split, tables, index, following)
        error = (1 - share) * _error(split, tables, index)
        error += share * _error(split, tables, following)
        # second term of (10)
        error += splits.rows / 2 * splits.others.squared_ranges[way]
        if error < least_error:
            least_error = error
            choice = SplitChoice(
                split, tables.multipliers[index], tables.multipliers[following]
            )
    return choice


@compiled
def _split(splits: Splits, way: int, level_bits: Doubles) -> Split:
    grids, others = splits.grids, splits.others
    two_stage = splits.counts[way]
    spans = np.empty(ENDPOINT_LEVELS, np.int64)
    span_counts = np.empty(ENDPOINT_LEVELS)
    in_use = 0
    entries = 0.0
    for span in range(ENDPOINT_LEVELS):
        columns = grids.span_counts[way, span]
        if columns > 0:
            spans[in_use], span_counts[in_use] = span, columns
            in_use += 1
            entries += splits.rows * columns
    mean_span = others.mean_high[way] - others.mean_low[way]
    mean_count = splits.columns - two_stage if mean_span > 0 else 0
    # (6)
    unit = (grids.high[way] - grids.low[way]) / (ENDPOINT_LEVELS - 1)
    if unit == 0:
        # any unit does where nothing has a span
        unit = mean_span if mean_span > 0 else 1.0
    symbol_bits = splits.symbol_bits[way]
    # a bit for each entry that is coded
    bits_left = symbol_bits - entries
    bits_each = bits_left / mean_count if mean_count > 0 else 0.0
    # the largest Q_0 whose bits are affordable; the table starts at 0 levels
    affordable = int(np.searchsorted(level_bits, bits_each, side="right")) - 1
    return Split(
        rows=splits.rows,
        two_stage=two_stage,
        grid_low=grids.low[way],
        grid_high=grids.high[way],
        unit=unit,
        spans=spans[:in_use],
        span_counts=span_counts[:in_use],
        mean_low=others.mean_low[way],
        mean_high=others.mean_high[way],
        mean_count=mean_count,
        # u_0 = B a_0^2 ln2 / nu, twice B times the u of a column with interval a_0
        mean_square=2.0 * splits.rows * (mean_span / unit) ** 2,
        most_mean_levels=max(affordable, FEWEST_LEVELS),
        symbol_bits=symbol_bits,
    )


@compiled
def _last_affordable(split: Split, tables: _Tables) -> int:
    """The largest coarse multiplier whose bits the budget has, by bisection."""
    last = len(tables.multipliers) - 1
    index = 0
    for step in _SEARCH_STEPS:
        higher = min(index + step, last)
        if _bits(split, tables, higher) <= split.symbol_bits:
            index = higher
    return index


@compiled
def _share_of_next(split: Split, tables: _Tables, index: int, following: int) -> float:
    """Part of the way from one multiplier to the next that the bits left pay for."""
    spent = _bits(split, tables, index)
    extra = _bits(split, tables, following) - spent
    # one more multiplier changes nothing, as at the end of the scale
    if extra <= 0:
        return 0.0
    return min(max((split.symbol_bits - spent) / extra, 0.0), 1.0)


@compiled
def _bits(split: Split, tables: _Tables, index: int) -> float:
    """Bits of all entries and means: the left side of (9), less side information."""
    row_bits = _sum_over_columns(split, tables.bits[index])
    mean_levels = _mean_levels(split, tables, index)
    mean_bits = split.mean_count * tables.level_bits[mean_levels]
    return split.rows * row_bits + float(mean_bits)


@compiled
def _error(split: Split, tables: _Tables, index: int) -> float:
    """First and third term of (10)."""
    row_error = _sum_over_columns(split, tables.errors[index])
    # B a_0^2 / 2 = n_0^2 / 4
    squares = split.mean_count * split.mean_square
    mean_levels = _mean_levels(split, tables, index)
    mean_error = squares / (4 * (mean_levels - 1.0) ** 2)
    squared_units = split.rows * row_error + mean_error
    # ways differ in their grid steps
    return float(squared_units * split.unit**2)


@compiled
def _sum_over_columns(split: Split, by_span: Doubles) -> float:
    total = 0.0
    for k, span in enumerate(split.spans):
        total += split.span_counts[k] * by_span[span]
    return total


@compiled
def _mean_levels(split: Split, tables: _Tables, index: int) -> int:
    """Levels of the means, ``Q_0``."""
    # (11) for u_0 = m n_0^2
    u = split.mean_square * tables.multipliers[index]
    reached = int(np.searchsorted(tables.thresholds, u, side="right"))
    return min(reached + FEWEST_LEVELS, split.most_mean_levels)
