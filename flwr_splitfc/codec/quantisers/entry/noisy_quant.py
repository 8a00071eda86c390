"""NoisyQuant: even levels, moved by a fixed noise for each column (2211.16056, Sec. 3).

With v the noise of an entry's column, in steps between levels, an entry x (in the same
steps) becomes

    round(x + v) - v,    |v| <= 1/2

which moves values that lie between two levels, and are common, closer to one.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from flwr_splitfc.codec.arrays import Doubles, Ints
from flwr_splitfc.codec.quantisers.entry.entry_quant import EntryQuant
from flwr_splitfc.codec.quantisers.entry.even_levels import (
    even_levels,
    look_up,
    steps_above,
)
from flwr_splitfc.codec.quantisers.entry.header import LevelHeader

_FULL_AMPLITUDE = 255
"""Noise within half a step both ways."""

_AMPLITUDES: Ints = np.arange(0, _FULL_AMPLITUDE + 1, 17)
"""What is tried, none first."""

_SAMPLE_ENTRIES = 2**14
"""About how many entries amplitudes are tried on."""

_GOLDEN_RATIO = 0x9E3779B9
"""Its fraction, in units of 2^-32."""


@dataclass(frozen=True)
class NoisyQuant(EntryQuant):
    """Even levels, each column's moved by a fixed noise of its own.

    The method is that of Liu et al. (2211.16056, Sec. 3). The noise is added before
    rounding and taken off afterwards; it is uniform within up to half a step between
    levels, and its amplitude minimises the squared error on a sample of rows. None is
    one of the choices. Reconstructed: in the paper the noise is drawn at random once
    and the next layer's bias takes it off; here it is a fixed sequence that both sides
    know, and the amplitude is chosen for each batch's matrix.

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
            return LevelHeader(levels, low, high, parameter=0)
        # rows at equal distances
        every = ceil(matrix.numel() / _SAMPLE_ENTRIES)
        entries = steps_above(matrix[::every], low, high, levels)
        errors = _errors(entries, top=levels - 1)
        best = int(errors.argmin())
        return LevelHeader(
            levels=levels, low=low, high=high, parameter=int(_AMPLITUDES[best])
        )

    def symbols(self, matrix: Tensor, header: LevelHeader) -> Tensor:
        entries = steps_above(matrix, header.low, header.high, header.levels)
        noise_steps = _noise_steps(header, matrix.shape[1])
        entries += torch.from_numpy(noise_steps).to(entries)
        entries.round_()
        return entries.clamp_(0, header.levels - 1)

    def values(self, symbols: Tensor, header: LevelHeader) -> Tensor:
        shifts = _noise_steps(header, symbols.shape[1]) * header.step
        values = look_up(even_levels(header), symbols)
        values -= torch.from_numpy(shifts).float()
        # clamp_ may change the sign of a zero
        values.masked_fill_(values < header.low, header.low)
        return values.masked_fill_(values > header.high, header.high)


def _errors(entries: Tensor, top: int) -> Tensor:
    """The squared error at each amplitude, of entries in steps between levels."""
    columns = entries.shape[1]
    amplitudes = _AMPLITUDES[:, None, None] / _FULL_AMPLITUDE
    noise_steps = amplitudes * noise(columns)
    shifts = torch.from_numpy(noise_steps).to(entries)
    moved = entries + shifts
    rounded = moved.round_().clamp_(0, top)
    decoded = rounded.sub_(shifts).clamp_(0, top)
    squares = decoded.sub_(entries).square_()
    return squares.sum((1, 2), dtype=torch.float64)


def noise(columns: int) -> Doubles:
    """Return noise between -1/2 and 1/2 for each column.

    It is a Weyl sequence, uniform and the same on any machine.

    >>> noise(3).round(4).tolist()
    [0.118, -0.2639, 0.3541]
    """
    # modulo 1 the multiples of an irrational number are uniform
    position = np.arange(1, columns + 1, dtype=np.uint64)
    weyl = position * np.uint64(_GOLDEN_RATIO) % np.uint64(2**32)
    fraction = (weyl + 0.5) / 2**32
    noise: Doubles = fraction - 0.5
    return noise


def _noise_steps(header: LevelHeader, columns: int) -> Doubles:
    """The noise of each column at the header's amplitude, in steps between levels."""
    amplitude = header.parameter or 0
    return noise(columns) * amplitude / _FULL_AMPLITUDE
