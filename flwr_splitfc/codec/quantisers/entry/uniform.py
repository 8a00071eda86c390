"""Uniform quantisation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from flwr_splitfc.codec.quantisers.entry.entry_quant import EntryQuant
from flwr_splitfc.codec.quantisers.entry.header import LevelHeader


@dataclass(frozen=True)
class Uniform(EntryQuant):
    """Even levels from the matrix's least entry to its greatest (2307.10805, Sec. VI).

    Reconstructed: the SplitFC paper compares with a uniform quantiser and does not say
    more. Here each batch's matrix has an interval of its own, and the number of levels
    is as large as the budget allows and no power of two.

    Examples
    --------
    >>> import torch
    >>> matrix = torch.tensor([[0.0, 1.2, 1.9, 3.0]]).repeat(25, 1)
    >>> payload = Uniform().encode(matrix, budget_bytes=42)
    >>> Uniform().decode(memoryview(payload), 25, 4)[0]
    tensor([0., 1., 2., 3.])
    """

    def fit(self, matrix: Tensor, low: float, high: float, levels: int) -> LevelHeader:
        return LevelHeader(levels, low, high)
