"""Even levels: ``Q`` values with equal steps between them, from `low` to `high`."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from flwr_splitfc.codec.arrays import Floats
from flwr_splitfc.codec.format.grid import grid_values
from flwr_splitfc.codec.quantisers.entry.header import LevelHeader


def even_levels(header: LevelHeader) -> Floats:
    """Return the ``Q`` values from `low` to `high`."""
    points = np.arange(header.levels)
    return grid_values(points, header.low, header.high, header.levels)


def steps_above(matrix: Tensor, low: float, high: float, levels: int) -> Tensor:
    """Return how far entries are above `low`, in steps between levels, float32.

    Divided before it is multiplied, nothing overflows or vanishes.
    """
    steps = matrix.sub(low)
    steps.div_(matrix.new_tensor(high - low))
    steps.mul_(levels - 1)
    return steps


def nearest_level(matrix: Tensor, low: float, high: float, levels: int) -> Tensor:
    """Return the index of each entry's nearest level, float32.

    Entries beyond the ends go to the last level there.
    """
    steps = steps_above(matrix, low, high, levels)
    steps.round_()
    steps.clamp_(0, levels - 1)
    return steps


def look_up(values: Floats, symbols: Tensor) -> Tensor:
    """Return the value of each symbol, in the symbols' shape."""
    flat_symbols = symbols.reshape(-1)
    flat_values = torch.from_numpy(values).index_select(0, flat_symbols)
    return flat_values.view(symbols.shape)
