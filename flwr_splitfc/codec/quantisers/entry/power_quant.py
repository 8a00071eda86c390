"""PowerQuant: even levels of a power of the entries (2301.09858, Sec. 3).

The levels are even in the root domain, where an entry x is ``sign(x) |x|^a``:

    level = sign(t) |t|^(1/a),    1/a = n/8,    t even from its low to its high

The receiver takes ``|t|^(n/8)`` as the n-th power of an eighth root, three square
roots, because IEEE products and square roots round alike on all machines.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from flwr_splitfc.codec.arrays import Doubles, Floats, Ints
from flwr_splitfc.codec.errors import PayloadError
from flwr_splitfc.codec.format.floats import MAGNITUDE_LIMIT
from flwr_splitfc.codec.quantisers.entry.entry_quant import SEARCH_LEVELS, EntryQuant
from flwr_splitfc.codec.quantisers.entry.even_levels import look_up
from flwr_splitfc.codec.quantisers.entry.header import LevelHeader
from flwr_splitfc.codec.quantisers.entry.histogram import Histogram

LEAST_EIGHTHS = 8
MOST_EIGHTHS = 64
"""Bounds of n in ``1/a = n/8``: the power that takes levels back is 1 to 8."""


@dataclass(frozen=True)
class PowerQuant(EntryQuant):
    """Even levels of a power of the entries, ``sign(x) |x|^a``.

    The method is that of Yvinec et al. (2301.09858, Sec. 3). The power minimises the
    squared error: ``a = 8/n`` for n = 8 ... 64, so that the receiver takes it back by
    square roots and products alone, which round alike everywhere. Reconstructed: the
    paper has one power for all weights and symmetric levels with a zero; here each
    batch's matrix has its own power, levels reach from its least entry to its greatest,
    and an entry goes to the level that is nearest to itself.

    Examples
    --------
    >>> matrix = torch.tensor([[0.0, 1.0, 4.0, 9.0]]).repeat(25, 1)
    >>> payload = PowerQuant().encode(matrix, budget_bytes=43)
    >>> PowerQuant().decode(memoryview(payload), 25, 4)[0]
    tensor([0., 1., 4., 9.])
    """

    has_parameter: ClassVar[bool] = True

    def fit(self, matrix: Tensor, low: float, high: float, levels: int) -> LevelHeader:
        if levels == 1:
            # the power 1 keeps every value as it is
            return LevelHeader(levels, low, high, LEAST_EIGHTHS)
        eighths = np.arange(LEAST_EIGHTHS, MOST_EIGHTHS + 1)
        lows = _root_ends(low, eighths)
        highs = _root_ends(high, eighths)
        roots = np.linspace(lows, highs, min(levels, SEARCH_LEVELS), axis=1)
        powers = eighths[:, None] / 8
        tried = np.sign(roots) * np.abs(roots) ** powers
        product, square = Histogram(matrix, low, high).products(tried)
        # |X - R|^2 less |X|^2, which is the same for all
        errors = square - 2 * product
        # float32 has no interval there
        errors[lows >= highs] = np.inf
        best = int(np.argmin(errors))
        return LevelHeader(
            levels=levels,
            low=float(lows[best]),
            high=float(highs[best]),
            parameter=int(eighths[best]),
        )

    def symbols(self, matrix: Tensor, header: LevelHeader) -> Tensor:
        values = power_levels(header).astype(np.float64)
        middles = (values[1:] + values[:-1]) / 2
        # as the entries are: a level is nearest between two middles
        boundaries = torch.from_numpy(middles).float()
        return torch.bucketize(matrix, boundaries.to(matrix.device), out_int32=True)

    def values(self, symbols: Tensor, header: LevelHeader) -> Tensor:
        _check_power(header)
        values = power_levels(header)
        _check_levels(values)
        return look_up(values, symbols)


def _check_power(header: LevelHeader) -> None:
    eighths = header.parameter or 0
    if LEAST_EIGHTHS <= eighths <= MOST_EIGHTHS:
        return
    raise PayloadError(
        f"power is {eighths} eighths; {LEAST_EIGHTHS} to {MOST_EIGHTHS} were wanted"
    )


def _check_levels(values: Floats) -> None:
    least, greatest = float(values[0]), float(values[-1])
    if max(-least, greatest) <= MAGNITUDE_LIMIT:
        return
    raise PayloadError(
        f"levels reach from {values[0]} to {values[-1]}; at most 1e38 was wanted"
    )


def power_levels(header: LevelHeader) -> Floats:
    """Return ``sign(t) |t|^(n/8)`` for ``Q`` even values t from `low` to `high`.

    n is the header's parameter.

    >>> power_levels(LevelHeader(3, -1.0, 3.0, parameter=16)).tolist()
    [-1.0, 1.0, 9.0]
    """
    roots = header.low + np.arange(header.levels) * np.float64(header.step)
    # three times, for the power 1/8
    square_roots = np.sqrt(np.abs(roots))
    eighth_roots = np.sqrt(np.sqrt(square_roots))
    magnitudes = eighth_roots.copy()
    # products from left to right, as docs/wire-format.md says
    for _ in range((header.parameter or 0) - 1):
        magnitudes *= eighth_roots
    # from the wire; `PowerQuant.values` refuses what is infinite
    with np.errstate(over="ignore"):
        return np.copysign(magnitudes, roots).astype(np.float32)


def _root_ends(end: float, eighths: Ints) -> Doubles:
    """``sign(x) |x|^a`` of an extreme, as float32 and rounded towards zero.

    So no level is beyond the extreme, nor beyond 1e38.
    """
    exact = abs(end) ** (8 / eighths)
    rounded = exact.astype(np.float32)
    next_smaller = np.nextafter(rounded, np.float32(0.0))
    ends = np.where(rounded > exact, next_smaller, rounded)
    return np.copysign(ends.astype(np.float64), end)
