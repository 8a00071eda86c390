"""The digits model of the MNIST example, and a mini-batch for it."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

EXAMPLE = Path(__file__).parents[1] / "examples" / "mnist"
ADAM = partial(torch.optim.Adam, lr=1e-3)


def halves() -> tuple[nn.Module, nn.Module]:
    """Return the digits model of the example, cut at 32 x 6 x 6."""
    sys.path.insert(0, str(EXAMPLE))
    from splitmnist.task import DeviceHalf, ServerHalf

    torch.manual_seed(0)
    return DeviceHalf(1, 8), ServerHalf(8, 10)


def batch(rows: int) -> tuple[Tensor, Tensor]:
    """Return images and labels."""
    draw = torch.Generator().manual_seed(0)
    images = torch.rand(rows, 1, 8, 8, generator=draw)
    labels = torch.randint(10, (rows,), generator=draw)
    return images, labels
