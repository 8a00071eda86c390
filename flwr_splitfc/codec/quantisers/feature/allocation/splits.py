"""The ways to split columns into two-stage columns and means (SplitFC, Sec. V).

With the columns sorted by falling range, a split is one number: the first M columns get
two stages, and the mean stands for each of the other K - M. At most

    M_max = floor(bits left after header and means / bits of a column of two levels)

columns fit (17), and a tenth, two tenths, ... of that, and none at all, are tried. What
a split loses and costs follows from

    E = sum_{i <= M} B a_i^2 / (4 (Q_i - 1)^2)              two-stage columns
      + sum_{i > M} B range_i^2 / 2                         means instead of entries
      + (K - M) B a_0^2 / (2 (Q_0 - 1)^2)                   rounding of the means  (10)

    bits = B sum_{i <= M} log2 Q_i + (K - M) log2 Q_0 + side information            (9)

where ``a_i = n_i step`` and ``a_0`` is the span of the means.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from flwr_splitfc.codec.arrays import Doubles, Ints
from flwr_splitfc.codec.format.symbols import (
    SYMBOL_OVERHEAD_BITS,
    level_bits,
    usable_bits,
)
from flwr_splitfc.codec.quantisers.feature.endpoints import covering_intervals
from flwr_splitfc.codec.quantisers.feature.header import (
    ENDPOINT_LEVELS,
    quant_header_bytes,
)
from flwr_splitfc.codec.quantisers.feature.levels import FEWEST_LEVELS

_PARTS = 10
"""The paper tries tenths of the largest M."""

_BLOCK_COLUMNS = 2**13
"""Columns whose endpoints on all grids stay in the cache."""


@dataclass(frozen=True, eq=False)
class SortedColumns:
    """What the allocation knows of the columns, sorted by falling range.

    Parameters
    ----------
    low, high, mean : ndarray
        Of each column, float64 (K,).
    rows : int
        ``B``.
    """

    low: Doubles
    high: Doubles
    mean: Doubles
    rows: int

    @property
    def count(self) -> int:
        """``K``."""
        return len(self.low)

    @property
    def ranges(self) -> Doubles:
        """Greatest less least entry of each column."""
        return self.high - self.low


@dataclass(frozen=True, eq=False)
class Splits:
    """Several ways to split the columns; arrays have one element for each.

    Parameters
    ----------
    columns : SortedColumns
        What is split.
    counts : ndarray
        ``M`` of each way, int64, increasing.
    grid_low, grid_high : ndarray
        Ends of the endpoint grid: extremes of the two-stage columns; 0 for none.
    mean_low, mean_high : ndarray
        Ends of the grid for means: extremes of the other columns' means; 0 for none.
    span_counts : ndarray
        How many two-stage columns span n grid steps, (ways, 200).
    mean_error : ndarray
        The second term of (10), which no number of levels changes.
    symbol_bits : ndarray
        Bits for entries and means: the budget less all side information of (9).
    """

    columns: SortedColumns
    counts: Ints
    grid_low: Doubles
    grid_high: Doubles
    mean_low: Doubles
    mean_high: Doubles
    span_counts: Doubles
    mean_error: Doubles
    symbol_bits: Doubles

    @property
    def rows(self) -> int:
        """``B``."""
        return self.columns.rows

    @cached_property
    def mean_spans(self) -> Doubles:
        """``a_0``, greatest less least mean."""
        return self.mean_high - self.mean_low

    @cached_property
    def unit(self) -> Doubles:
        """The grid step, the unit of spans and errors.

        The span of the means serves where all two-stage columns are one point.
        """
        # (6)
        step = (self.grid_high - self.grid_low) / (ENDPOINT_LEVELS - 1)
        # any unit does where nothing has a span
        substitute = np.where(self.mean_spans > 0, self.mean_spans, 1.0)
        return np.where(step > 0, step, substitute)

    @cached_property
    def mean_squares(self) -> Doubles:
        """``n_0^2 = 2 B (a_0 / unit)^2``, with which (11) has ``u_0 = m n_0^2``."""
        # u_0 = B a_0^2 ln2 / nu, twice B times the u of a column with interval a_0
        relative_spans = self.mean_spans / self.unit
        return 2.0 * self.rows * relative_spans**2

    @cached_property
    def mean_counts(self) -> Ints:
        """Means that cost bits: none where all means are equal."""
        means = self.columns.count - self.counts
        return np.where(self.mean_spans > 0, means, 0)

    @cached_property
    def most_mean_levels(self) -> Ints:
        """The most levels for means that leave two levels for every entry."""
        # columns of one point have no entries to code; the others need a bit for each
        active_columns = self.span_counts[:, 1:].sum(1)
        bits_left = self.symbol_bits - self.rows * active_columns
        bits_each = np.zeros_like(bits_left)
        np.divide(
            bits_left, self.mean_counts, out=bits_each, where=self.mean_counts > 0
        )
        # the largest Q_0 whose bits are affordable; the table starts at 0 levels
        affordable = level_bits().searchsorted(bits_each, side="right") - 1
        levels: Ints = np.maximum(affordable, FEWEST_LEVELS)
        return levels


def split_ways(columns: SortedColumns, budget_bytes: int) -> Splits:
    """Set up the ways to split columns that are to be coded in `budget_bytes`."""
    counts = _two_stage_counts(columns, budget_bytes)
    # columns are sorted, so that all sums and extremes are over a first or last part
    squared_ranges = _over_others(np.add, columns.ranges**2, counts)
    grid_low = _over_first(np.minimum, columns.low, counts)
    grid_high = _over_first(np.maximum, columns.high, counts)
    return Splits(
        columns=columns,
        counts=counts,
        grid_low=grid_low,
        grid_high=grid_high,
        mean_low=_over_others(np.minimum, columns.mean, counts),
        mean_high=_over_others(np.maximum, columns.mean, counts),
        span_counts=_span_counts(columns, counts, grid_low, grid_high),
        # second term of (10)
        mean_error=columns.rows / 2 * squared_ranges,
        # right side of (9), less its side information
        symbol_bits=_symbol_bits(columns, counts, budget_bytes),
    )


def _two_stage_counts(columns: SortedColumns, budget_bytes: int) -> Ints:
    """Tenths of the columns that could have two levels each, and none at all."""
    room = _bits_beside_means(columns.count, budget_bytes)
    most = int(room // _fewest_column_bits(columns.rows))
    most = min(max(most, 0), columns.count)
    # equal numbers are one way; 0 is always among them
    counts = {most * part // _PARTS for part in range(_PARTS + 1)}
    return np.array(sorted(counts))


def _bits_beside_means(columns: int, budget_bytes: int) -> float:
    """The numerator of (17): bits left if each column had a mean of two levels."""
    entries_header_bytes = quant_header_bytes(columns, columns)
    means_header_bytes = quant_header_bytes(0, columns)
    # the most that the set of two-stage columns can take
    bitmap_bytes = columns // 8
    side_bytes = entries_header_bytes + means_header_bytes + bitmap_bytes
    return usable_bits(budget_bytes - side_bytes, columns) - columns


def _fewest_column_bits(rows: int) -> float:
    """The denominator of (17): what a column of two levels costs more than a mean."""
    entry_bits = rows * (1 + SYMBOL_OVERHEAD_BITS)
    endpoint_bits = 2 * float(np.log2(ENDPOINT_LEVELS))
    mean_bits = 1
    return entry_bits + endpoint_bits - mean_bits


def _symbol_bits(columns: SortedColumns, counts: Ints, budget_bytes: int) -> Doubles:
    """What (9) leaves for entries and means."""
    stream_bits = [
        _stream_bits(columns, count, budget_bytes) for count in counts.tolist()
    ]
    endpoint_bits = 2 * counts * level_bits()[ENDPOINT_LEVELS]
    bits: Doubles = np.array(stream_bits) - endpoint_bits
    return bits


def _stream_bits(columns: SortedColumns, two_stage: int, budget_bytes: int) -> float:
    """What the header leaves for all symbols, less the range coder's own bits."""
    # floats of both grids, multiplier, upgrades and the set of two-stage columns
    header_bytes = quant_header_bytes(two_stage, columns.count)
    endpoints = 2 * two_stage
    means = columns.count - two_stage
    entries = columns.rows * two_stage
    return usable_bits(budget_bytes - header_bytes, endpoints + means + entries)


def _span_counts(
    columns: SortedColumns, counts: Ints, grid_low: Doubles, grid_high: Doubles
) -> Doubles:
    """How many of the first M columns span n steps of their grid, (ways, 200)."""
    ways = len(counts)
    span_counts = np.zeros(ways * ENDPOINT_LEVELS)
    # one bincount serves all ways: each has 200 bins of its own
    bins_before = ENDPOINT_LEVELS * np.arange(ways)
    # columns beyond the largest M are never two-stage
    for block in _blocks(int(counts[-1])):
        intervals = covering_intervals(
            columns.low[block],
            columns.high[block],
            grid_low[:, None],
            grid_high[:, None],
        )
        bins = intervals.spans + bins_before[:, None]
        two_stage = np.arange(block.start, block.stop) < counts[:, None]
        span_counts += np.bincount(bins[two_stage], minlength=span_counts.size)
    return span_counts.reshape(ways, ENDPOINT_LEVELS)


def _blocks(columns: int) -> Iterator[slice]:
    for start in range(0, columns, _BLOCK_COLUMNS):
        yield slice(start, min(start + _BLOCK_COLUMNS, columns))


def _over_first(operation: np.ufunc, values: Doubles, counts: Ints) -> Doubles:
    """Reduce the first M values by `operation`, for each M; 0 for none."""
    reduced = np.zeros(len(values) + 1)
    # element M is over M values
    operation.accumulate(values, out=reduced[1:])
    return reduced[counts]


def _over_others(operation: np.ufunc, values: Doubles, counts: Ints) -> Doubles:
    """Reduce all but the first M values by `operation`, for each M; 0 for none."""
    backwards = values[::-1]
    return _over_first(operation, backwards, len(values) - counts)
