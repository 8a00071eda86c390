"""Quantisers of single entries: the same levels for all of them, as many as the budget pays for."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from flwr_splitfc.codec.arrays import Doubles, Floats
from flwr_splitfc.codec.format.grid import grid_values
from flwr_splitfc.codec.format.symbols import (
    SymbolReader,
    most_levels,
    pack_symbols,
    stream_bytes,
)
from flwr_splitfc.codec.quantisers.entry.header import (
    LevelHeader,
    level_header_bytes,
    pack_level_header,
    unpack_level_header,
)
from flwr_splitfc.codec.quantisers.quantiser import Quantiser
from flwr_splitfc.codec.statistics import matrix_extremes

SEARCH_LEVELS = 2**10
"""No search looks at more levels: with so many, all that it could find is as good."""

_HISTOGRAM_POINTS = 2**12 + 1


class EntryQuant(Quantiser):
    """Rounds every entry to one of ``Q`` levels and range-codes which; the baselines of SplitFC, Sec. VI.

    A method chooses the header, given ``Q``; the levels are even from the header's
    `low` to its `high` unless the method has others.
    """

    has_parameter: ClassVar[bool] = False
    """Whether the header has one."""

    @abstractmethod
    def fit(self, matrix: Tensor, low: float, high: float, levels: int) -> LevelHeader:
        """The method's header for a (B, K) matrix with these extremes; `levels` is 1 if they are equal."""

    def symbols(self, matrix: Tensor, header: LevelHeader) -> Tensor:
        """The level of each entry, integers (B, K)."""
        return nearest_level(matrix, header.low, header.high, header.levels)

    def values(self, symbols: Tensor, header: LevelHeader) -> Tensor:
        """What each entry decodes to, float32 (B, K)."""
        return look_up(even_levels(header), symbols)

    def encode(self, matrix: Tensor, budget_bytes: int) -> bytes:
        low, high = matrix_extremes(matrix)
        target_bytes = budget_bytes - self._header_bytes()
        while True:
            levels = most_levels(target_bytes, matrix.numel()) if low < high else 1
            header = self.fit(matrix, low, high, levels)
            data = pack_level_header(header)
            if levels > 1:
                data += pack_symbols(
                    [(self.symbols(matrix, header).int().cpu().numpy().ravel(), levels)]
                )
            if len(data) <= budget_bytes or levels <= 2:
                return data
            target_bytes -= max(4, len(data) - budget_bytes)

    def decode(self, data: memoryview, rows: int, columns: int) -> Tensor:
        header, stream = unpack_level_header(data, parameter=self.has_parameter)
        reader, symbols = SymbolReader(stream), np.zeros(rows * columns, np.int32)
        if header.levels > 1:
            symbols = reader.read(rows * columns, header.levels)
        reader.close()
        return self.values(torch.from_numpy(symbols).view(rows, columns), header)

    def smallest_bytes(self, rows: int, columns: int) -> int:
        """Two levels."""
        return self._header_bytes() + stream_bytes(rows * columns)

    def _header_bytes(self) -> int:
        return level_header_bytes(parameter=self.has_parameter)


def even_levels(header: LevelHeader) -> Floats:
    """``Q`` values from `low` to `high`."""
    return grid_values(np.arange(header.levels), header.low, header.high, header.levels)


def nearest_level(matrix: Tensor, low: float, high: float, levels: int) -> Tensor:
    """The nearest of even levels for each entry, float32; entries beyond the ends go to the last ones."""
    return steps_above(matrix, low, high, levels).round_().clamp_(0, levels - 1)


def steps_above(matrix: Tensor, low: float, high: float, levels: int) -> Tensor:
    """How far entries are above `low`, in steps between even levels; divided first, nothing overflows or vanishes."""
    return matrix.sub(low).div_(matrix.new_tensor(high - low)).mul_(levels - 1)


def look_up(values: Floats, symbols: Tensor) -> Tensor:
    """The value of each symbol."""
    return (
        torch.from_numpy(values)
        .index_select(0, symbols.reshape(-1))
        .view(symbols.shape)
    )


class Histogram:
    """Entries by value, as a search sees them: it tries many levels in the time of one pass over the matrix.

    Parameters
    ----------
    matrix : Tensor
        (B, K).
    low, high : float
        Its extremes, not the same.
    """

    def __init__(self, matrix: Tensor, low: float, high: float) -> None:
        points = nearest_level(matrix, low, high, _HISTOGRAM_POINTS).int().ravel()
        counts = torch.bincount(points, minlength=_HISTOGRAM_POINTS).cpu().numpy()
        self._low, self._step = low, (high - low) / (_HISTOGRAM_POINTS - 1)
        values = low + self._step * np.arange(_HISTOGRAM_POINTS)
        self._counts = np.append(0.0, np.cumsum(counts))
        self._sums = np.append(0.0, np.cumsum(counts * values))
        self.square = float(np.sum(counts * values * values))

    def products(self, levels: Doubles) -> tuple[Doubles, Doubles]:
        """Inner products of what the matrix is rounded to, with the matrix and with itself.

        Parameters
        ----------
        levels : ndarray
            One set of increasing levels a row, (sets, Q).
        """
        middles = (levels[:, 1:] + levels[:, :-1]) / 2
        inner = (
            np.ceil((middles - self._low) / self._step)
            .clip(0, _HISTOGRAM_POINTS)
            .astype(np.int64)
        )
        ends = (
            np.pad(inner, ((0, 0), (1, 0))),
            np.pad(inner, ((0, 0), (0, 1)), constant_values=_HISTOGRAM_POINTS),
        )
        counts, sums = (
            prefix[ends[1]] - prefix[ends[0]] for prefix in (self._counts, self._sums)
        )
        return (levels * sums).sum(1), (levels * levels * counts).sum(1)
