"""PowerQuant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from flwr_splitfc.codec.arrays import Doubles, Floats, Ints
from flwr_splitfc.codec.errors import PayloadError
from flwr_splitfc.codec.format.floats import MAGNITUDE_LIMIT
from flwr_splitfc.codec.quantisers.entry.entry_quant import (
    SEARCH_LEVELS,
    EntryQuant,
    Histogram,
    look_up,
)
from flwr_splitfc.codec.quantisers.entry.header import LevelHeader

LEAST_EIGHTHS, MOST_EIGHTHS = 8, 64
"""Of the power that takes levels back, ``1/a``: from 1 to 8."""


@dataclass(frozen=True)
class PowerQuant(EntryQuant):
    """Even levels of a power of the entries, ``sign(x) |x|^a`` (Yvinec et al., 2301.09858, Sec. 3).

    The power minimises the squared error: ``a = 8/n`` for n = 8 ... 64, so that the
    receiver takes it back by square roots and products alone, which round alike
    everywhere. Reconstructed: the paper has one power for all weights and symmetric
    levels with a zero; here each batch's matrix has its own power, levels reach from
    its least entry to its greatest, and an entry goes to the level that is nearest to
    itself.

    Examples
    --------
    >>> payload = PowerQuant().encode(torch.tensor([[0.0, 1.0, 4.0, 9.0]]).repeat(25, 1), budget_bytes=43)
    >>> PowerQuant().decode(memoryview(payload), 25, 4)[0]
    tensor([0., 1., 4., 9.])
    """

    has_parameter: ClassVar[bool] = True

    def fit(self, matrix: Tensor, low: float, high: float, levels: int) -> LevelHeader:
        if levels == 1:
            end = float(_root_ends(low, np.array([LEAST_EIGHTHS]))[0])
            return LevelHeader(levels, end, end, LEAST_EIGHTHS)
        eighths = np.arange(LEAST_EIGHTHS, MOST_EIGHTHS + 1)
        lows, highs = _root_ends(low, eighths), _root_ends(high, eighths)
        roots = np.linspace(lows, highs, min(levels, SEARCH_LEVELS), axis=1)
        tried = np.sign(roots) * np.abs(roots) ** (eighths[:, None] / 8)
        product, square = Histogram(matrix, low, high).products(tried)
        best = int(np.argmin(np.where(lows < highs, square - 2 * product, np.inf)))
        return LevelHeader(
            levels, float(lows[best]), float(highs[best]), int(eighths[best])
        )

    def symbols(self, matrix: Tensor, header: LevelHeader) -> Tensor:
        values = power_levels(header).astype(np.float64)
        middles = (
            torch.from_numpy((values[1:] + values[:-1]) / 2).float().to(matrix.device)
        )
        return torch.bucketize(matrix, middles, out_int32=True)

    def values(self, symbols: Tensor, header: LevelHeader) -> Tensor:
        eighths = header.parameter or 0
        if not LEAST_EIGHTHS <= eighths <= MOST_EIGHTHS:
            raise PayloadError(
                f"power is {eighths} eighths; {LEAST_EIGHTHS} to {MOST_EIGHTHS} were wanted"
            )
        values = power_levels(header)
        if not max(-float(values[0]), float(values[-1])) <= MAGNITUDE_LIMIT:
            raise PayloadError(
                f"levels reach from {values[0]} to {values[-1]}; at most 1e38 was wanted"
            )
        return look_up(values, symbols)


def power_levels(header: LevelHeader) -> Floats:
    """``sign(t) |t|^(n/8)`` of ``Q`` even values t from `low` to `high`; n is the header's parameter.

    >>> power_levels(LevelHeader(3, -1.0, 3.0, parameter=16)).tolist()
    [-1.0, 1.0, 9.0]
    """
    step = (header.high - header.low) / max(header.levels - 1, 1)
    roots = header.low + np.arange(header.levels) * np.float64(step)
    eighth = np.sqrt(np.sqrt(np.sqrt(np.abs(roots))))
    values = eighth.copy()
    for _ in range((header.parameter or 0) - 1):
        values *= eighth
    with np.errstate(over="ignore"):
        return np.copysign(values, roots).astype(np.float32)


def _root_ends(end: float, eighths: Ints) -> Doubles:
    """``sign(x) |x|^a`` of an extreme, as float32 and rounded towards zero: no level is beyond 1e38."""
    exact = abs(end) ** (8 / eighths)
    ends = exact.astype(np.float32)
    ends = np.where(ends > exact, np.nextafter(ends, np.float32(0.0)), ends)
    return np.copysign(ends.astype(np.float64), end)
