"""EasyQuant: an interval that keeps the matrix's direction (2006.16669, Sec. 3).

With c the point of the matrix's interval that is nearest to zero, the interval is

    from c + f (low - c) to c + f (high - c),    0 < f <= 1

and ``f`` maximises the cosine between the matrix X and what X is rounded to,

    cos = <X, R> / (|X| |R|),    R = X rounded to the levels of the interval
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from flwr_splitfc.codec.arrays import Doubles
from flwr_splitfc.codec.quantisers.entry.entry_quant import SEARCH_LEVELS, EntryQuant
from flwr_splitfc.codec.quantisers.entry.header import LevelHeader
from flwr_splitfc.codec.quantisers.entry.histogram import Histogram

_SCALES = np.arange(100, 0, -1) / 100
"""What is tried for ``f``, widest first."""

_COSINE_DECIMALS = 9
"""Cosines that differ less are as good."""


@dataclass(frozen=True)
class EasyQuant(EntryQuant):
    """Even levels on the interval whose rounding keeps the matrix's direction best.

    The method is that of Wu et al. (2006.16669, Sec. 3). The scale of the interval
    maximises the cosine between the matrix and what it is rounded to, over a hundred
    scales up to that of the extremes; entries beyond the interval are clipped.
    Reconstructed: the paper alternates between the scales of weights and activations of
    a layer, calibrated once on a few images; here each batch's matrix has a scale of
    its own. The interval shrinks towards zero, or where the entries have one sign
    towards the end next to zero, so that features after a ReLU have all levels. With
    more than 1024 levels nothing is clipped.

    Examples
    --------
    >>> import torch
    >>> matrix = torch.cat([torch.linspace(0, 1, 99), torch.tensor([1.5])])[None]
    >>> payload = EasyQuant().encode(matrix, budget_bytes=40)
    >>> round(float(EasyQuant().decode(memoryview(payload), 1, 100).max()), 3)
    0.84
    """

    def fit(self, matrix: Tensor, low: float, high: float, levels: int) -> LevelHeader:
        if not 1 < levels <= SEARCH_LEVELS:
            return LevelHeader(levels, low, high)
        # zero, or the end next to it where entries have one sign
        centre = min(max(0.0, low), high)
        lows = _scaled(low, centre)
        highs = _scaled(high, centre)
        tried = np.linspace(lows, highs, levels, axis=1)
        cosines = _cosines(Histogram(matrix, low, high), tried)
        # float32 has no interval there
        cosines[lows >= highs] = -1.0
        # the first of those that are as good is the widest
        best = int(np.argmax(cosines.round(_COSINE_DECIMALS)))
        return LevelHeader(
            levels=levels, low=float(lows[best]), high=float(highs[best])
        )


def _scaled(end: float, centre: float) -> Doubles:
    """An end of the interval at each scale, as float32: what the header can carry."""
    ends = centre + _SCALES * (end - centre)
    return ends.astype(np.float32).astype(np.float64)


def _cosines(entries: Histogram, levels: Doubles) -> Doubles:
    """The cosine for each set of levels; -1 where all is rounded to zero."""
    product, square = entries.products(levels)
    norms = np.sqrt(square * entries.square)
    cosines = np.full_like(product, -1.0)
    np.divide(product, norms, out=cosines, where=norms > 0)
    return cosines
