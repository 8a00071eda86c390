"""Labelled images in memory."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Indices = npt.NDArray[np.int64]
"""Numbers of samples in a data set, (N,)."""


class DatasetSpec(NamedTuple):
    """What a model must know of a data set of square images.

    An image has the shape (`channels`, `image_size`, `image_size`).
    """

    channels: int
    image_size: int
    num_classes: int


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images and their labels.

    An index gives float32 images (..., C, H, W) between 0 and 1, and their labels.

    Parameters
    ----------
    images : Tensor
        (N, C, H, W), float32 between 0 and 1, or uint8, which takes a quarter of the
        memory.
    labels : Tensor
        int64 (N,).
    num_classes : int

    Examples
    --------
    >>> pixels = torch.full((5, 1, 2, 2), 51, dtype=torch.uint8)
    >>> data = LabelledImages(pixels, torch.arange(5), num_classes=5)
    >>> images, labels = data[3:]
    >>> images.unique(), labels
    (tensor([0.2000]), tensor([3, 4]))
    """

    images: Tensor
    labels: Tensor
    num_classes: int

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int | slice | Tensor) -> tuple[Tensor, Tensor]:
        images = self.images[index]
        if images.dtype == torch.uint8:
            images = images.float().div_(255)
        return images, self.labels[index]

    def subset(self, indices: Indices) -> "LabelledImages":
        """Return the samples at `indices`, in that order."""
        chosen = torch.from_numpy(indices)
        return LabelledImages(
            self.images[chosen], self.labels[chosen], self.num_classes
        )

    @property
    def spec(self) -> DatasetSpec:
        """What a model must know."""
        _, channels, height, _ = self.images.shape
        return DatasetSpec(channels, height, self.num_classes)
