"""Quantisers that round entry by entry, on as many levels as the budget pays for."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from flwr_splitfc.codec.arrays import Symbols
from flwr_splitfc.codec.format.symbols import (
    SymbolReader,
    most_levels,
    pack_symbols,
    pack_within,
    stream_bytes,
)
from flwr_splitfc.codec.quantisers.entry.even_levels import (
    even_levels,
    look_up,
    nearest_level,
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
"""Most levels that a method searches: on more, all that it could find is as good."""

_FEWEST_LEVELS = 2
"""Of a matrix with more than one value."""


class EntryQuant(Quantiser):
    """Round every entry to one of the same ``Q`` levels; send which by range coder.

    These are the baselines of SplitFC, Sec. VI. A method chooses the header, given
    ``Q``; the levels are even from the header's `low` to its `high` unless the method
    has others.
    """

    has_parameter: ClassVar[bool] = False
    """Whether the header has one."""

    @abstractmethod
    def fit(self, matrix: Tensor, low: float, high: float, levels: int) -> LevelHeader:
        """Choose the header for a (B, K) matrix.

        Parameters
        ----------
        low, high : float
            Least and greatest entry of the matrix.
        levels : int
            ``Q``, 1 if all entries are equal.
        """

    def symbols(self, matrix: Tensor, header: LevelHeader) -> Tensor:
        """Return the level of each entry, integers (B, K)."""
        return nearest_level(matrix, header.low, header.high, header.levels)

    def values(self, symbols: Tensor, header: LevelHeader) -> Tensor:
        """Return what each entry decodes to, float32 (B, K)."""
        return look_up(even_levels(header), symbols)

    def encode(self, matrix: Tensor, budget_bytes: int) -> bytes:
        low, high = matrix_extremes(matrix)
        # one value needs no symbols
        if low == high:
            return pack_level_header(self.fit(matrix, low, high, levels=1))

        def pack(target_bytes: int) -> tuple[bytes, bool]:
            symbol_bytes = target_bytes - self._header_bytes()
            levels = most_levels(symbol_bytes, matrix.numel())
            header = self.fit(matrix, low, high, levels)
            data = pack_level_header(header) + self._pack_entries(matrix, header)
            return data, levels <= _FEWEST_LEVELS

        return pack_within(pack, budget_bytes)

    def decode(self, data: memoryview, rows: int, columns: int) -> Tensor:
        header, stream = unpack_level_header(data, parameter=self.has_parameter)
        reader = SymbolReader(stream)
        symbols: Symbols = np.zeros(rows * columns, np.int32)
        # one level has no stream
        if header.levels > 1:
            symbols = reader.read(len(symbols), header.levels)
        reader.close()
        matrix = torch.from_numpy(symbols).view(rows, columns)
        return self.values(matrix, header)

    def smallest_bytes(self, rows: int, columns: int) -> int:
        """Two levels."""
        return self._header_bytes() + stream_bytes(rows * columns)

    def _header_bytes(self) -> int:
        return level_header_bytes(parameter=self.has_parameter)

    def _pack_entries(self, matrix: Tensor, header: LevelHeader) -> bytes:
        symbols = self.symbols(matrix, header).int().cpu().numpy()
        return pack_symbols([(symbols.ravel(), header.levels)])
