"""Labelled images in memory, by the name of their data set."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from flwr_splitfc.vision.extra import extra_module

Indices = npt.NDArray[np.int64]


class DatasetSpec(NamedTuple):
    """What a model must know of a dataset: square images of `channels` x `image_size` x `image_size`."""

    channels: int
    image_size: int
    num_classes: int


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images and their labels; what is taken from them are float32 images (..., C, H, W) between 0 and 1.

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
    >>> data = LabelledImages(torch.full((5, 1, 2, 2), 51, dtype=torch.uint8), torch.arange(5), num_classes=5)
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
        return images.float().div_(
            255
        ) if images.dtype == torch.uint8 else images, self.labels[index]

    def subset(self, indices: Indices) -> "LabelledImages":
        """The samples at `indices`, in that order."""
        chosen = torch.from_numpy(indices)
        return LabelledImages(
            self.images[chosen], self.labels[chosen], self.num_classes
        )

    @property
    def spec(self) -> DatasetSpec:
        """What a model must know."""
        return DatasetSpec(self.images.shape[1], self.images.shape[2], self.num_classes)


@lru_cache(maxsize=2)
def load_dataset(
    name: str, data_dir: str = "", download: bool = True
) -> tuple[LabelledImages, LabelledImages]:
    """The training and the test set of a dataset; a process reads them once.

    Parameters
    ----------
    name : str
        `digits`, which comes with scikit-learn (1,797 images of 8 x 8), or the dotted
        path of a class that is called as `torchvision.datasets.MNIST` is.
    data_dir : str (default: "")
        The class's `root`, an absolute path: a run's processes start in other folders
        than its user. Unused for digits.
    download : bool (default: True)
        Whether the class may download what is missing.
    """
    return (
        _digits() if name == "digits" else _torchvision_style(name, data_dir, download)
    )


def _digits() -> tuple[LabelledImages, LabelledImages]:
    """A fixed split, 1,438 to train and 359 to test."""
    digits = extra_module("sklearn.datasets").load_digits()
    images = torch.from_numpy(digits.images / 16).float().unsqueeze(1)  # (N, 1, 8, 8)
    everything = LabelledImages(
        images, torch.from_numpy(digits.target).long(), num_classes=10
    )
    order = np.random.default_rng(0).permutation(len(everything))
    num_test = len(everything) // 5
    return everything.subset(order[num_test:]), everything.subset(order[:num_test])


def data_folder(name: str, data_dir: str, download: bool) -> Path:
    """The run-config's ``data-dir``, checked: an absolute path, and a folder unless `download` may make it.

    Raises
    ------
    ValueError, FileNotFoundError
    """
    root = Path(data_dir).expanduser()
    if not root.is_absolute():
        raise ValueError(
            f"data-dir is {data_dir!r}; dataset {name!r} needs the absolute path of its data folder"
        )
    if not download and not root.is_dir():
        raise FileNotFoundError(
            f"data-dir {root} does not exist; create it or set download=true"
        )
    return root


def _torchvision_style(
    name: str, data_dir: str, download: bool
) -> tuple[LabelledImages, LabelledImages]:
    cls = _dataset_class(name)
    root = data_folder(name, data_dir, download)
    try:
        train, test = (
            cls(root=str(root), train=part, download=download) for part in (True, False)
        )
    # torchvision's ways to say "not found", "corrupted", "not downloaded"
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"dataset {name!r} cannot be read from data-dir {root}: {error}"
        ) from error
    labels = [_labels(part) for part in (train, test)]
    num_classes = 1 + max(int(part.max()) for part in labels)
    return (
        LabelledImages(_images(train), labels[0], num_classes),
        LabelledImages(_images(test), labels[1], num_classes),
    )


def _dataset_class(name: str) -> Callable[..., Any]:
    """The class at a dotted path, checked to take `root`, `train` and `download`."""
    wanted = "use 'digits' or the dotted path of a dataset class, such as 'torchvision.datasets.MNIST'"
    module, _, attribute = name.rpartition(".")
    if not module:
        raise ValueError(f"unknown dataset {name!r}: {wanted}")
    try:
        load = extra_module if module.startswith("torchvision") else import_module
        cls: Callable[..., Any] = getattr(load(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"dataset {name!r} cannot be imported ({error}): {wanted}"
        ) from error
    try:
        inspect.signature(cls).bind(root="", train=True, download=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"dataset {name!r} cannot be called as cls(root=, train=, download=) ({error}): {wanted}"
        ) from error
    return cls


def _images(dataset: Any) -> Tensor:
    """Its `.data` if it has one, which is fast; else image by image."""
    raw = (
        dataset.data
        if hasattr(dataset, "data")
        else np.stack([np.asarray(image) for image, _ in dataset])
    )
    images = torch.as_tensor(raw)
    if images.ndim == 3:
        images = images.unsqueeze(1)  # (N, H, W), grey
    elif images.ndim == 4 and images.shape[1] not in (1, 3):
        images = images.permute(0, 3, 1, 2)  # (N, H, W, C), as PIL and CIFAR-10 have it
    if (
        images.ndim != 4
        or images.shape[1] not in (1, 3)
        or images.shape[2] != images.shape[3]
    ):
        raise ValueError(
            f"images have the shape {tuple(images.shape)}; wanted square ones of 1 or 3 channels"
        )
    if images.dtype != torch.uint8:
        images = images.float()
        if not 0 <= images.min() <= images.max() <= 1:
            raise ValueError(
                f"images lie in [{images.min():g}, {images.max():g}]; wanted uint8, or floats in [0, 1]"
            )
    return images.contiguous()


def _labels(dataset: Any) -> Tensor:
    labels = torch.as_tensor(
        dataset.targets
        if hasattr(dataset, "targets")
        else [label for _, label in dataset]
    )
    if labels.ndim != 1 or labels.is_floating_point() or labels.min() < 0:
        raise ValueError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}; wanted a class number each, from 0"
        )
    return labels.long()
