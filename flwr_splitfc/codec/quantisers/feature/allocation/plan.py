"""All that is decided before entries are quantised (SplitFC, Sec. V)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flwr_splitfc.codec.arrays import Doubles, Ints
from flwr_splitfc.codec.compiled import compiled
from flwr_splitfc.codec.quantisers.feature.allocation.bisection import allot_bits
from flwr_splitfc.codec.quantisers.feature.allocation.split_search import best_split
from flwr_splitfc.codec.quantisers.feature.allocation.splits import (
    SortedColumns,
    split_ways,
)
from flwr_splitfc.codec.quantisers.feature.allocation.upgrade_search import (
    best_upgrades,
)
from flwr_splitfc.codec.quantisers.feature.endpoints import (
    Intervals,
    covering_intervals,
)
from flwr_splitfc.codec.quantisers.feature.header import QuantHeader
from flwr_splitfc.codec.quantisers.feature.levels import FEWEST_LEVELS


@dataclass(frozen=True, eq=False)
class Plan:
    """How a matrix is going to be coded.

    Parameters
    ----------
    header : QuantHeader
        The settings that are sent.
    intervals : Intervals
        Those of the two-stage columns, (M,).
    """

    header: QuantHeader
    intervals: Intervals

    @property
    def is_smallest(self) -> bool:
        """Whether no payload of this shape is smaller: means alone, on two levels."""
        no_entries = len(self.header.two_stage) == 0
        return no_entries and self.header.mean_levels <= FEWEST_LEVELS


def plan_budget(
    low: Doubles, high: Doubles, mean: Doubles, rows: int, budget_bytes: int
) -> Plan:
    """Decide how a feature-quantised (B, K) matrix is coded in about `budget_bytes`.

    Parameters
    ----------
    low, high, mean : ndarray
        Of each column, float64 (K,), representable in float32.
    rows : int
        ``B``.
    budget_bytes : int
        The range coder may need a word more; below the smallest payload the plan is the
        smallest.
    """
    order = _by_falling_range(low, high)
    # from here to the split all is in sorted order
    columns = SortedColumns(*_in_order(order, low, high, mean), rows)
    choice = best_split(split_ways(columns, budget_bytes))
    split = choice.split
    allotment = allot_bits(choice)
    # back to the matrix's order, in which columns are sent
    chosen = order[: split.two_stage]
    two_stage, low_ends, high_ends = _in_matrix_order(chosen, low, high)
    intervals = covering_intervals(low_ends, high_ends, split.grid_low, split.grid_high)
    upgrades = best_upgrades(
        intervals.spans, allotment.multiplier, rows, allotment.entry_bits
    )
    header = QuantHeader(
        two_stage=two_stage,
        low=split.grid_low,
        high=split.grid_high,
        multiplier=allotment.multiplier,
        upgrades=upgrades,
        mean_low=split.mean_low,
        mean_high=split.mean_high,
        mean_levels=allotment.mean_levels,
    )
    return Plan(header, intervals)


@compiled
def _by_falling_range(low: Doubles, high: Doubles) -> Ints:
    """Columns from wide to narrow, in their order where equal, in linear time.

    The bits of floats that are not negative order like the floats. So they are sorted
    by each of their bytes, the last one first.
    """
    ranges = np.empty(len(low), np.float32)
    order = np.empty(len(low), np.int64)
    for column in range(len(low)):
        ranges[column] = high[column] - low[column]
        order[column] = column
    rising = ranges.view(np.uint32)
    for shift in range(0, 32, 8):
        place_of = np.zeros(257, np.int64)
        for bits in rising:
            place_of[256 - (bits >> shift & 255)] += 1
        for place in range(1, 257):
            place_of[place] += place_of[place - 1]
        sorted_further = np.empty(len(low), np.int64)
        for sorted_column in order:
            byte = 255 - (rising[sorted_column] >> shift & 255)
            sorted_further[place_of[byte]] = sorted_column
            place_of[byte] += 1
        order = sorted_further
    return order


@compiled
def _in_order(
    order: Ints, low: Doubles, high: Doubles, mean: Doubles
) -> tuple[Doubles, Doubles, Doubles]:
    ordered = np.empty((3, len(order)))
    for place in range(len(order)):
        column = order[place]
        ordered[0, place] = low[column]
        ordered[1, place] = high[column]
        ordered[2, place] = mean[column]
    return ordered[0], ordered[1], ordered[2]


@compiled
def _in_matrix_order(
    chosen: Ints, low: Doubles, high: Doubles
) -> tuple[Ints, Doubles, Doubles]:
    """The chosen columns as the matrix has them, and their ends."""
    is_chosen = np.zeros(len(low), np.bool_)
    for column in chosen:
        is_chosen[column] = True
    columns = np.empty(len(chosen), np.int64)
    ends = np.empty((2, len(chosen)))
    place = 0
    for column in range(len(low)):
        if is_chosen[column]:
            columns[place] = column
            ends[0, place] = low[column]
            ends[1, place] = high[column]
            place += 1
    return columns, ends[0], ends[1]
