"""Adaptive feature-wise quantisation (SplitFC, Sec. V)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flwr_splitfc.codec.arrays import Doubles, Floats, Ints, Symbols
from flwr_splitfc.codec.errors import PayloadError
from flwr_splitfc.codec.format.grid import grid_values, nearest_point
from flwr_splitfc.codec.format.symbols import SymbolReader, pack_symbols, stream_bytes
from flwr_splitfc.codec.quantisers.feature.allocation.plan import Plan, plan_budget
from flwr_splitfc.codec.quantisers.feature.header import (
    ENDPOINT_LEVELS,
    QuantHeader,
    pack_quant_header,
    quant_header_bytes,
    unpack_quant_header,
)
from flwr_splitfc.codec.quantisers.feature.levels import column_levels
from flwr_splitfc.codec.quantisers.quantiser import Quantiser
from flwr_splitfc.codec.statistics import column_extremes, column_means


@dataclass(frozen=True, eq=False)
class _EntryGrid:
    """Where the entries of two-stage columns of positive span may lie, arrays (A,)."""

    columns: Tensor
    base: NDArray[np.float32]
    step: NDArray[np.float32]
    levels: Symbols

    @classmethod
    def of(cls, header: QuantHeader, endpoints: Ints) -> _EntryGrid:
        steps = endpoints[:, 1] - endpoints[:, 0]
        levels = column_levels(steps, header.multiplier, header.upgrades)
        active = steps > 0
        ends = grid_values(endpoints[active], header.low, header.high, ENDPOINT_LEVELS)
        sizes: Symbols = levels[active].astype(np.int32)
        step: Floats = np.divide(ends[:, 1] - ends[:, 0], sizes - 1, dtype=np.float32)
        return cls(torch.from_numpy(header.two_stage[active]), ends[:, 0], step, sizes)

    def symbols(self, matrix: Tensor) -> Symbols:
        """The nearest level of each entry, row by row."""
        device = matrix.device
        base, step = (
            torch.from_numpy(part).to(device) for part in (self.base, self.step)
        )
        top = torch.from_numpy(self.levels - 1).to(device).float()
        entries = matrix.index_select(1, self.columns.to(device))
        entries = (
            entries.sub_(base)
            .div_(step.where(step > 0, 1.0))
            .round_()
            .clamp_(top.new_zeros(()), top)
        )
        return entries.to(torch.int32).cpu().numpy().ravel()

    def sizes(self, rows: int) -> Symbols:
        """Levels of each entry, row by row."""
        return np.tile(self.levels, rows)

    def values(self, symbols: Symbols, rows: int) -> Tensor:
        """Entries from their levels, float32 (B, A)."""
        values = symbols.reshape(rows, len(self.levels)).astype(np.float32)
        values *= self.step
        values += self.base
        return torch.from_numpy(values)


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

    def encode(self, matrix: Tensor, budget_bytes: int) -> bytes:
        rows, columns = matrix.shape
        if columns == 0:
            return pack_quant_header(QuantHeader(np.arange(0)), 0)
        low, high = (extreme.numpy() for extreme in column_extremes(matrix))
        mean = column_means(matrix).float().double().numpy().clip(low, high)
        target_bytes = budget_bytes
        while True:
            plan = plan_budget(low, high, mean, rows, target_bytes)
            data = _pack(matrix, plan, mean)
            if len(data) <= budget_bytes or plan.is_smallest:
                return data
            target_bytes -= max(4, len(data) - budget_bytes)

    def decode(self, data: memoryview, rows: int, columns: int) -> Tensor:
        header, stream = unpack_quant_header(data, columns)
        reader = SymbolReader(stream)
        endpoints = _read_endpoints(reader, len(header.two_stage))
        means = _mean_columns(header, columns)
        mean_points = np.zeros(len(means), np.int32)
        if header.mean_levels > 1:
            mean_points = reader.read(len(means), header.mean_levels)
        try:
            grid = _EntryGrid.of(header, endpoints)
        except ValueError as error:
            raise PayloadError(f"payload makes {error}") from error
        symbols = reader.read(rows * len(grid.levels), grid.sizes(rows))
        reader.close()
        constants = np.empty(columns, np.float32)
        constants[header.two_stage] = grid_values(
            endpoints[:, 0], header.low, header.high, ENDPOINT_LEVELS
        )
        constants[means] = grid_values(
            mean_points, header.mean_low, header.mean_high, header.mean_levels
        )
        matrix = torch.from_numpy(constants).repeat(rows, 1)
        return matrix.scatter_(
            1, grid.columns.expand(rows, -1), grid.values(symbols, rows)
        )

    def smallest_bytes(self, rows: int, columns: int) -> int:
        """Means alone, with two levels."""
        return quant_header_bytes(0, columns) + stream_bytes(columns)


def _mean_columns(header: QuantHeader, columns: int) -> Ints:
    return np.delete(np.arange(columns), header.two_stage)


def _pack(matrix: Tensor, plan: Plan, mean: Doubles) -> bytes:
    rows, columns = matrix.shape
    return pack_quant_header(plan.header, columns) + pack_symbols(
        _runs(matrix, plan, mean, rows)
    )


def _runs(
    matrix: Tensor, plan: Plan, mean: Doubles, rows: int
) -> Iterator[tuple[Symbols, int | Symbols]]:
    header = plan.header
    yield plan.endpoints.ravel().astype(np.int32), ENDPOINT_LEVELS
    if header.mean_levels > 1:
        means = mean[_mean_columns(header, len(mean))]
        points = nearest_point(
            means, header.mean_low, header.mean_high, header.mean_levels
        )
        yield points.astype(np.int32), header.mean_levels
    grid = _EntryGrid.of(header, plan.endpoints)
    yield grid.symbols(matrix), grid.sizes(rows)


def _read_endpoints(reader: SymbolReader, count: int) -> Ints:
    endpoints = (
        reader.read(2 * count, ENDPOINT_LEVELS).reshape(count, 2).astype(np.int64)
    )
    if bool((endpoints[:, 1] < endpoints[:, 0]).any()):
        raise PayloadError("a column's endpoints are out of order")
    return endpoints
