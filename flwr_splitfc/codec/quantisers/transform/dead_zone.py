"""Quantisation with one step and a dead zone.

A coefficient x becomes a whole number of steps, and keeps its sign::

    m = floor(|x| / step + 0.33)

Plain rounding has 0.5 for 0.33. So more coefficients become zero here, which saves more
bits than it costs precision (docs/splitfc-rd.md, "The method", 3, and "Ablation").
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from flwr_splitfc.codec.arrays import Ints

DEAD_ZONE = 0.33
"""What is added before rounding down; from 0.67 steps on a magnitude is not zero."""


def magnitudes_in_steps(values: Tensor, step: float) -> Tensor:
    """Return the magnitudes as whole numbers of steps, float32.

    >>> import torch
    >>> magnitudes_in_steps(torch.tensor([-1.3, 1.4, -3.4, 0.0]), step=2.0)
    tensor([0., 1., 2., 0.])
    """
    steps = values.abs()
    # in place: this passes over the whole batch for every step that is tried
    steps.mul_(1 / step)
    steps.add_(DEAD_ZONE)
    return steps.floor_()


def nonzero_places(magnitudes: Tensor) -> Ints:
    """Return where magnitudes on the CPU are not zero, row-major; most are.

    >>> import torch
    >>> nonzero_places(torch.tensor([[0.0, 2.0], [1.0, 0.0]])).tolist()
    [1, 2]
    """
    # in booleans, numpy finds them ten times as fast as in floats
    return np.flatnonzero(magnitudes.numpy() > 0)


def coarsest_step(magnitude: float) -> float:
    """Return the coarsest step with which a value of this magnitude is not zero."""
    return magnitude / (1 - DEAD_ZONE)
