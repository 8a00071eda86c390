"""The ways to split columns into two-stage columns and means (SplitFC, Sec. V).

With the columns sorted by falling range, a split is one number: the first M columns get
two stages, and the mean stands for each of the other K - M. At most

    M_max = floor(bits left after header and means / bits of a column of two levels)

columns fit (17), and a tenth, two tenths, ... of that, and none at all, are tried.
M_max counts a bit for the mean of every column, but means that are equal take none, as
those of columns of zeros. So where some columns are constant, all that vary are one M
more to try, if the budget has two levels for each of their entries.

The symbols of a split may have the bits that its side information leaves of

    bits = B sum_{i <= M} log2 Q_i + (K - M) log2 Q_0 + side information            (9)
"""

from __future__ import annotations

from functools import lru_cache
from math import log2
from typing import NamedTuple

import numpy as np

from flwr_splitfc.codec.arrays import Doubles, Ints
from flwr_splitfc.codec.compiled import compiled
from flwr_splitfc.codec.format.symbols import (
    SYMBOL_OVERHEAD_BITS,
    level_bits,
    usable_bits,
)
from flwr_splitfc.codec.quantisers.feature.endpoints import Grids, grids_of_first
from flwr_splitfc.codec.quantisers.feature.header import (
    ENDPOINT_LEVELS,
    quant_header_bytes,
)

_PARTS = 10
"""The paper tries tenths of the largest M."""


class SortedColumns(NamedTuple):
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


class Others(NamedTuple):
    """The columns after the first M, for several M; all is 0 for none.

    Parameters
    ----------
    mean_low, mean_high : ndarray
        Extremes of their means.
    squared_ranges : ndarray
        The sum over them.
    """

    mean_low: Doubles
    mean_high: Doubles
    squared_ranges: Doubles


class Splits(NamedTuple):
    """Several ways to split columns.

    Parameters
    ----------
    rows, columns : int
        ``B`` and ``K``.
    counts : ndarray
        ``M`` of each way, int64, increasing.
    symbol_bits : ndarray
        Bits for entries and means: the budget less all side information of (9).
    grids : Grids
        Of the two-stage columns.
    others : Others
        The columns of which only the means are sent.
    """

    rows: int
    columns: int
    counts: Ints
    symbol_bits: Doubles
    grids: Grids
    others: Others


def split_ways(columns: SortedColumns, budget_bytes: int) -> Splits:
    """Set up the ways to split columns that are to be coded in `budget_bytes`."""
    rows = columns.rows
    count = len(columns.mean)
    varying = int(np.count_nonzero(columns.high > columns.low))
    constants = columns.mean[varying:]
    differ = bool((constants != constants[:1]).any())
    counts, symbol_bits = _counts_and_bits(rows, count, varying, differ, budget_bytes)
    return Splits(
        rows=rows,
        columns=count,
        counts=counts,
        symbol_bits=symbol_bits,
        grids=grids_of_first(columns.low, columns.high, counts),
        others=_other_columns(columns, counts),
    )


# dropout keeps about as many columns of the next batch
@lru_cache(2**10)
def _counts_and_bits(
    rows: int, columns: int, varying: int, differ: bool, budget_bytes: int
) -> tuple[Ints, Doubles]:
    """How many two-stage columns each way has, and bits for its symbols.

    The means of columns that do not vary `differ`, or are all the same.
    """

    def bits(count: int) -> float:
        return _symbol_bits(rows, columns, count, budget_bytes)

    counts = _two_stage_counts(rows, columns, budget_bytes)
    constants = columns - varying
    # two levels for each entry, and for each mean unless all are equal
    fewest_bits = rows * varying + constants * differ
    if constants and bits(varying) >= fewest_bits:
        counts.add(varying)
    ways = sorted(counts)
    return np.array(ways), np.array([bits(count) for count in ways])


def _two_stage_counts(rows: int, columns: int, budget_bytes: int) -> set[int]:
    """Tenths of the columns that could have two levels each, and none at all."""
    room = _bits_beside_means(columns, budget_bytes)
    most = int(room // _fewest_column_bits(rows))
    most = min(max(most, 0), columns)
    # equal numbers are one way; 0 is always among them
    return {most * part // _PARTS for part in range(_PARTS + 1)}


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
    endpoint_bits = 2 * log2(ENDPOINT_LEVELS)
    mean_bits = 1
    return entry_bits + endpoint_bits - mean_bits


def _symbol_bits(rows: int, columns: int, two_stage: int, budget_bytes: int) -> float:
    """What (9) leaves for entries and means, less the range coder's own bits."""
    # floats of both grids, multiplier, upgrades and the set of two-stage columns
    header_bytes = quant_header_bytes(two_stage, columns)
    endpoints = 2 * two_stage
    means = columns - two_stage
    entries = rows * two_stage
    stream_bits = usable_bits(budget_bytes - header_bytes, endpoints + means + entries)
    return stream_bits - endpoints * float(level_bits()[ENDPOINT_LEVELS])


@compiled
def _other_columns(columns: SortedColumns, counts: Ints) -> Others:
    mean_low = np.zeros(len(counts))
    mean_high = np.zeros(len(counts))
    squared_ranges = np.zeros(len(counts))
    least, greatest, total = np.inf, -np.inf, 0.0
    column = len(columns.mean)
    # the largest M has the fewest others
    for way in range(len(counts) - 1, -1, -1):
        while column > counts[way]:
            column -= 1
            mean = columns.mean[column]
            # of two zeros the later one, whose sign is sent
            least = mean if mean <= least else least
            greatest = mean if mean >= greatest else greatest
            total += (columns.high[column] - columns.low[column]) ** 2
        if column < len(columns.mean):
            mean_low[way], mean_high[way] = least, greatest
        squared_ranges[way] = total
    return Others(mean_low, mean_high, squared_ranges)
