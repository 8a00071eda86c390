"""EasyQuant."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from flwr_splitfc.codec.quantisers.entry.entry_quant import (
    SEARCH_LEVELS,
    EntryQuant,
    Histogram,
)
from flwr_splitfc.codec.quantisers.entry.header import LevelHeader

_SCALES = np.arange(100, 0, -1) / 100
_COSINE_DECIMALS = 9


@dataclass(frozen=True)
class EasyQuant(EntryQuant):
    """Even levels on the interval whose rounding keeps the matrix's direction best (Wu et al., 2006.16669, Sec. 3).

    The scale of the interval maximises the cosine between the matrix and what it is
    rounded to, over a hundred scales up to that of the extremes; entries beyond the
    interval are clipped. Reconstructed: the paper alternates between the scales of
    weights and activations of a layer, calibrated once on a few images; here each
    batch's matrix has a scale of its own. The interval shrinks towards zero, or where
    the entries have one sign towards the end next to zero, so that features after a
    ReLU have all levels. With more than 1024 levels nothing is clipped.

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
        centre = min(max(0.0, low), high)
        lows, highs = (
            (centre + _SCALES * (end - centre)).astype(np.float32).astype(np.float64)
            for end in (low, high)
        )
        sent = np.linspace(lows, highs, levels, axis=1)
        entries = Histogram(matrix, low, high)
        product, square = entries.products(sent)
        norms = np.sqrt(square * entries.square)
        cosine = np.divide(
            product,
            norms,
            out=np.full_like(product, -1.0),
            where=(norms > 0) & (lows < highs),
        )
        # the widest of those that are as good
        best = int(np.argmax(cosine.round(_COSINE_DECIMALS)))
        return LevelHeader(levels, float(lows[best]), float(highs[best]))
