"""Adaptive feature-wise quantisation (SplitFC, 2307.10805, Sec. V).

A column is decoded in one of three ways:

    two-stage column        x + k s        k = round((entry - x) / s), 0 ... Q - 1   (7)
    column of one point     x              a two-stage column whose interval is empty
    mean-value column       mean           on a grid of Q_0 points                   (8)

where ``x`` and ``x + (Q - 1) s`` are the ends of the column's interval on the endpoint
grid. The numbers are those of the equations in docs/splitfc.md; `endpoints`, `levels`,
`upgrades` and `allocation` have the others. docs/wire-format.md has the bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, log2
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from flwr_splitfc.codec.arrays import Doubles, Floats, Ints, Symbols
from flwr_splitfc.codec.compiled import compiled
from flwr_splitfc.codec.errors import PayloadError
from flwr_splitfc.codec.format.symbols import (
    MOST_LEVELS,
    SymbolReader,
    pack_symbols,
    pack_within,
    stream_bytes,
)
from flwr_splitfc.codec.quantisers.feature.allocation.plan import Plan, plan_budget
from flwr_splitfc.codec.quantisers.feature.endpoints import Intervals
from flwr_splitfc.codec.quantisers.feature.header import (
    ENDPOINT_LEVELS,
    QuantHeader,
    pack_quant_header,
    quant_header_bytes,
    unpack_quant_header,
)
from flwr_splitfc.codec.quantisers.feature.upgrades import column_levels
from flwr_splitfc.codec.quantisers.quantiser import Quantiser
from flwr_splitfc.codec.statistics import column_extremes, column_means


class _EntryGrid(NamedTuple):
    """Where the entries of two-stage columns of positive span may lie.

    Parameters
    ----------
    columns : ndarray
        Which they are of the K columns, int64 (A,).
    base, step : ndarray
        ``x`` and ``s`` of each, float32 (A,).
    levels : ndarray
        ``Q`` of each, int32 (A,).
    """

    columns: Ints
    base: Floats
    step: Floats
    levels: Symbols

    @classmethod
    def of(cls, header: QuantHeader, intervals: Intervals) -> _EntryGrid:
        levels = column_levels(intervals.spans, header.multiplier, header.upgrades)
        return _entry_grid(
            header.two_stage, levels, intervals, header.low, header.endpoint_step
        )

    def symbols(self, matrix: Tensor) -> Symbols:
        """The nearest level of each entry, row by row."""
        columns = torch.from_numpy(self.columns).to(matrix.device)
        entries = matrix.index_select(1, columns).cpu().numpy()
        return _nearest_levels(entries, self)

    @property
    def width(self) -> int:
        """``A``."""
        return len(self.levels)

    def sizes(self, rows: int) -> Symbols:
        """Levels of each entry, row by row."""
        sizes = np.empty((rows, self.width), np.int32)
        sizes[:] = self.levels
        return sizes.ravel()


@compiled
def _entry_grid(
    two_stage: Ints,
    levels: Ints,
    intervals: Intervals,
    low: float,
    endpoint_step: float,
) -> _EntryGrid:
    columns = np.empty(len(two_stage), np.int64)
    base = np.empty(len(two_stage), np.float32)
    step = np.empty(len(two_stage), np.float32)
    own_levels = np.empty(len(two_stage), np.int32)
    width = 0
    for i in range(len(two_stage)):
        first, last = intervals.first[i], intervals.last[i]
        # a column of one point has no symbols
        if last > first:
            columns[width] = two_stage[i]
            base[width] = low + first * endpoint_step
            top = np.float32(low + last * endpoint_step)
            step[width] = (top - base[width]) / np.float32(levels[i] - 1)
            own_levels[width] = levels[i]
            width += 1
    return _EntryGrid(columns[:width], base[:width], step[:width], own_levels[:width])


@compiled
def _nearest_levels(entries: Floats, grid: _EntryGrid) -> Symbols:
    """(7), all of it in float32, row by row."""
    rows, columns = entries.shape
    step = np.empty(columns, np.float32)
    last = np.empty(columns, np.float32)
    for column in range(columns):
        # an interval can vanish in float32
        step[column] = grid.step[column] if grid.step[column] > 0 else 1.0
        last[column] = grid.levels[column] - 1
    lowest = np.float32(0)
    symbols = np.empty((rows, columns), np.int32)
    for row in range(rows):
        for column in range(columns):
            level = np.rint((entries[row, column] - grid.base[column]) / step[column])
            symbols[row, column] = min(max(level, lowest), last[column])
    return symbols.ravel()


@compiled
def _mean_points(
    mean: Doubles, two_stage: Ints, low: float, step: float, levels: int
) -> Symbols:
    """(8), for the columns that are not two-stage."""
    points = np.empty(len(mean) - len(two_stage), np.int32)
    entries = 0
    for column in range(len(mean)):
        if entries < len(two_stage) and two_stage[entries] == column:
            entries += 1
            continue
        point = np.rint((mean[column] - low) / step)
        points[column - entries] = min(max(point, 0.0), levels - 1.0)
    return points


class _Grids(NamedTuple):
    """The endpoint grid, and that for means."""

    low: float
    step: float
    mean_low: float
    mean_step: float


@compiled
def _decoded(
    shape: tuple[int, int],
    two_stage: Ints,
    first: Ints,
    points: Symbols,
    grids: _Grids,
    grid: _EntryGrid,
    symbols: Symbols,
) -> Floats:
    """The matrix of this shape, from all of its symbols."""
    rows, columns = shape
    constants = np.empty(columns, np.float32)
    entries = 0
    for column in range(columns):
        if entries < len(two_stage) and two_stage[entries] == column:
            # overwritten but for a column of one point
            constants[column] = grids.low + first[entries] * grids.step
            entries += 1
        else:
            point = points[column - entries]
            constants[column] = grids.mean_low + point * grids.mean_step
    matrix = np.empty((rows, columns), np.float32)
    count = len(grid.columns)
    for row in range(rows):
        for column in range(columns):
            matrix[row, column] = constants[column]
        for i in range(count):
            level = np.float32(symbols[row * count + i])
            # float32, first the product, then the sum: docs/wire-format.md, section 4
            matrix[row, grid.columns[i]] = level * grid.step[i] + grid.base[i]
    return matrix


@dataclass(frozen=True)
class FeatureQuant(Quantiser):
    """Spends the budget where columns vary most (SplitFC, Sec. V).

    The widest columns are quantised entry by entry on their own intervals, with numbers
    of levels that minimise the error bound; of the others only the batch mean is sent.

    Examples
    --------
    >>> matrix = torch.tensor([[0.0, 5.0], [1.0, 5.0], [2.0, 5.0], [3.0, 5.0]])
    >>> payload = FeatureQuant().encode(matrix, budget_bytes=60)
    >>> FeatureQuant().decode(memoryview(payload), 4, 2).round().tolist()
    [[0.0, 5.0], [1.0, 5.0], [2.0, 5.0], [3.0, 5.0]]
    """

    has_quality: ClassVar[bool] = True

    # docs/choosing.md has the measurement
    kept_entry_bits: ClassVar[float | None] = 1.6

    def at_step(self, step: float) -> Quantiser:
        return _SteppedQuant(step)

    def encode(self, matrix: Tensor, budget_bytes: int) -> bytes:
        if matrix.shape[1] == 0:
            return pack_quant_header(QuantHeader(np.arange(0)), 0)
        return _encode(matrix, _statistics(matrix), budget_bytes)

    def decode(self, data: memoryview, rows: int, columns: int) -> Tensor:
        header, stream = unpack_quant_header(data, columns)
        reader = SymbolReader(stream)
        intervals = _read_intervals(reader, header)
        points = _read_points(reader, header, columns)
        grid = _grid_from_wire(header, intervals)
        symbols = reader.read(grid.width * rows, grid.sizes(rows))
        reader.close()
        grids = _Grids(
            header.low, header.endpoint_step, header.mean_low, header.mean_step
        )
        shape = (rows, columns)
        matrix = _decoded(
            shape, header.two_stage, intervals.first, points, grids, grid, symbols
        )
        return torch.from_numpy(matrix)

    def smallest_bytes(self, rows: int, columns: int) -> int:
        """Means alone, with two levels."""
        return quant_header_bytes(0, columns) + stream_bytes(columns)


@dataclass(frozen=True)
class _SteppedQuant(FeatureQuant):
    """Spends what steps of one size take.

    Parameters
    ----------
    step : float
        In the matrix' unit.
    """

    step: float = 0.0

    def encode(self, matrix: Tensor, budget_bytes: int) -> bytes:
        rows, columns = matrix.shape
        if columns == 0:
            return super().encode(matrix, budget_bytes)
        statistics = _statistics(matrix)
        worthwhile_bytes = _worthwhile_bytes(statistics, rows, self.step)
        return _encode(matrix, statistics, min(worthwhile_bytes, budget_bytes))


class _Statistics(NamedTuple):
    """What the plan must know of each column, float64 (K,)."""

    low: Doubles
    high: Doubles
    mean: Doubles


def _statistics(matrix: Tensor) -> _Statistics:
    low, high = column_extremes(matrix)
    # to float32 like the ends of their grid, and not beyond the column's own
    mean = column_means(matrix).float().double().clamp(low, high)
    return _Statistics(low.numpy(), high.numpy(), mean.numpy())


def _worthwhile_bytes(statistics: _Statistics, rows: int, step: float) -> int:
    """Return what a payload takes that tells apart what differs by a step."""
    ranges = statistics.high - statistics.low
    varies = ranges > 0
    two_stage = int(varies.sum())
    endpoint_bits = 2 * log2(ENDPOINT_LEVELS) * two_stage
    entry_bits = rows * _level_bits(ranges, step).sum()
    means = statistics.mean[~varies]
    mean_span = np.ptp(means) if len(means) else 0.0
    mean_bits = len(means) * _level_bits(mean_span, step)
    symbol_bits = float(endpoint_bits + entry_bits + mean_bits)
    header_bytes = quant_header_bytes(two_stage, len(ranges))
    return header_bytes + ceil(symbol_bits / 8)


def _level_bits(span: float | Doubles, step: float) -> Doubles:
    """Return the bits of one of the levels into which a step divides a span."""
    levels = np.minimum(span / step + 1, MOST_LEVELS)
    bits: Doubles = np.log2(levels)
    return bits


def _encode(matrix: Tensor, statistics: _Statistics, budget_bytes: int) -> bytes:
    """Encode in at most the budget, with the least error bound."""

    def pack(target_bytes: int) -> tuple[bytes, bool]:
        plan = plan_budget(*statistics, len(matrix), target_bytes)
        return _pack(matrix, plan, statistics.mean), plan.is_smallest

    return pack_within(pack, budget_bytes)


def _pack(matrix: Tensor, plan: Plan, mean: Doubles) -> bytes:
    columns = matrix.shape[1]
    header = pack_quant_header(plan.header, columns)
    return header + pack_symbols(_runs(matrix, plan, mean))


def _runs(
    matrix: Tensor, plan: Plan, mean: Doubles
) -> Iterator[tuple[Symbols, int | Symbols]]:
    """Endpoints, means and entries as symbols, with their numbers of levels."""
    header = plan.header
    yield plan.intervals.symbols(), ENDPOINT_LEVELS
    # equal means stand in the header
    if header.mean_levels > 1:
        points = _mean_points(
            mean,
            header.two_stage,
            header.mean_low,
            header.mean_step,
            header.mean_levels,
        )
        yield points, header.mean_levels
    grid = _EntryGrid.of(header, plan.intervals)
    yield grid.symbols(matrix), grid.sizes(len(matrix))


def _read_intervals(reader: SymbolReader, header: QuantHeader) -> Intervals:
    """The intervals of the two-stage columns."""
    symbols = reader.read(2 * len(header.two_stage), ENDPOINT_LEVELS)
    intervals = Intervals.from_symbols(symbols)
    if (intervals.spans < 0).any():
        raise PayloadError("a column's endpoints are out of order")
    return intervals


def _read_points(reader: SymbolReader, header: QuantHeader, columns: int) -> Symbols:
    """The points of the mean-value columns; all are 0 where the grid has one."""
    count = columns - len(header.two_stage)
    if header.mean_levels > 1:
        return reader.read(count, header.mean_levels)
    return np.zeros(count, np.int32)


def _grid_from_wire(header: QuantHeader, intervals: Intervals) -> _EntryGrid:
    """The entry grid of a header from the wire, which may ask for too many upgrades."""
    try:
        return _EntryGrid.of(header, intervals)
    except ValueError as error:
        raise PayloadError(f"payload makes {error}") from error
