"""NoisyQuant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from flwr_splitfc.codec.arrays import Doubles
from flwr_splitfc.codec.quantisers.entry.entry_quant import (
    EntryQuant,
    even_levels,
    look_up,
    steps_above,
)
from flwr_splitfc.codec.quantisers.entry.header import LevelHeader

_AMPLITUDES = np.arange(0, 256, 17)
_SAMPLE_ENTRIES = 2**14
_GOLDEN_RATIO = 0x9E3779B9


@dataclass(frozen=True)
class NoisyQuant(EntryQuant):
    """Even levels, each column's moved by a fixed noise of its own (Liu et al., 2211.16056, Sec. 3).

    The noise is added before rounding and taken off afterwards; it is uniform within up
    to half a step between levels, and its amplitude minimises the squared error on a
    sample of rows. None is one of the choices. Reconstructed: in the paper the noise is
    drawn at random once and the next layer's bias takes it off; here it is a fixed
    sequence that both sides know, and the amplitude is chosen for each batch's matrix.

    Examples
    --------
    >>> matrix = torch.tensor([[-1.0, -0.1, 0.1, 0.0, 1.0, 0.1]]).repeat(9, 1)
    >>> payload = NoisyQuant().encode(matrix, budget_bytes=23)
    >>> plain = torch.tensor([[-1.0, -1.0, 1.0, 1.0, 1.0, 1.0]])
    >>> decoded = NoisyQuant().decode(memoryview(payload), 9, 6)
    >>> bool((decoded - matrix).norm() < (plain - matrix).norm())
    True
    """

    has_parameter: ClassVar[bool] = True

    def fit(self, matrix: Tensor, low: float, high: float, levels: int) -> LevelHeader:
        if levels == 1:
            return LevelHeader(levels, low, high, 0)
        sample = matrix[:: -(-matrix.numel() // _SAMPLE_ENTRIES)]
        entries, top = steps_above(sample, low, high, levels), levels - 1
        shifts = torch.from_numpy(
            _AMPLITUDES[:, None, None] / 255 * noise(matrix.shape[1])
        ).to(entries)
        rounded = (entries + shifts).round_().clamp_(0, top).sub_(shifts).clamp_(0, top)
        errors = rounded.sub_(entries).square_().sum((1, 2), dtype=torch.float64)
        return LevelHeader(levels, low, high, int(_AMPLITUDES[int(errors.argmin())]))

    def symbols(self, matrix: Tensor, header: LevelHeader) -> Tensor:
        entries = steps_above(matrix, header.low, header.high, header.levels)
        entries += torch.from_numpy(_shifts(header, matrix.shape[1])).to(entries)
        return entries.round_().clamp_(0, header.levels - 1)

    def values(self, symbols: Tensor, header: LevelHeader) -> Tensor:
        step = (header.high - header.low) / max(header.levels - 1, 1)
        shifts = torch.from_numpy(_shifts(header, symbols.shape[1]) * step).float()
        values = look_up(even_levels(header), symbols).sub_(shifts)
        # clamp_ may change the sign of a zero
        values.masked_fill_(values < header.low, header.low)
        return values.masked_fill_(values > header.high, header.high)


def noise(columns: int) -> Doubles:
    """Between -1/2 and 1/2 for each column: a Weyl sequence, uniform and the same on any machine.

    >>> noise(3).round(4).tolist()
    [0.118, -0.2639, 0.3541]
    """
    weyl = (
        np.arange(1, columns + 1, dtype=np.uint64)
        * np.uint64(_GOLDEN_RATIO)
        % np.uint64(2**32)
    )
    return np.asarray((weyl + 0.5) / 2**32 - 0.5)


def _shifts(header: LevelHeader, columns: int) -> Doubles:
    """The noise of each column in steps between levels."""
    return noise(columns) * (header.parameter or 0) / 255
