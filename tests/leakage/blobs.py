"""Small pictures with something to see: two bright spots each."""

from functools import partial

import torch
from torch import Tensor, nn

SIDE = 12


def blobs(count: int, seed: int) -> Tensor:
    """Pictures (count, 1, 12, 12) between 0 and 1."""
    draw = torch.Generator().manual_seed(seed)
    centres = SIDE * torch.rand(count, 2, 2, 1, 1, generator=draw)
    places = torch.arange(SIDE, dtype=torch.float32)
    rows = places.reshape(1, 1, SIDE, 1) - centres[:, :, 0]
    columns = places.reshape(1, 1, 1, SIDE) - centres[:, :, 1]
    spots = torch.exp(-(rows.square() + columns.square()) / 4)
    return spots.amax(1, keepdim=True)


def batches(count: int, seed: int, rows: int = 32) -> list[tuple[Tensor, Tensor]]:
    pictures = blobs(count * rows, seed)
    labels = (
        pictures[:, 0, :, : SIDE // 2].mean((1, 2)) > pictures.mean((1, 2, 3))
    ).long()
    return list(zip(pictures.split(rows), labels.split(rows), strict=True))


def shallow_half() -> nn.Module:
    """One convolution, as at a shallow cut: 8 x 6 x 6 features."""
    convolution = partial(nn.Conv2d, 1, 8, 3, padding=1)
    return nn.Sequential(convolution(), nn.ReLU(), nn.MaxPool2d(2))
