"""Data sets whose class is called and read as torchvision's are.

The class takes ``root``, ``train`` and ``download``. What it makes has the images in
``.data`` and their classes in ``.targets``, or gives pairs of both one by one.
"""

import inspect
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flwr_splitfc.extras import imported
from flwr_splitfc.vision.data_folder import data_folder
from flwr_splitfc.vision.images import LabelledImages

_WANTED = (
    "use 'digits' or the dotted path of a dataset class, "
    "such as 'torchvision.datasets.MNIST'"
)


def load_torchvision_style(
    name: str, data_dir: str, download: bool
) -> tuple[LabelledImages, LabelledImages]:
    """Return the training and the test set of the class at a dotted path."""
    make = _dataset_class(name)
    root = data_folder(name, data_dir, download)
    train, test = _read(name, make, root, download)
    train_labels = _labels(train)
    test_labels = _labels(test)
    # a small test set may lack a class, and so may a training set
    num_classes = 1 + max(int(train_labels.max()), int(test_labels.max()))
    return (
        LabelledImages(_images(train), train_labels, num_classes),
        LabelledImages(_images(test), test_labels, num_classes),
    )


def _dataset_class(name: str) -> Callable[..., Any]:
    """Return the class at a dotted path, checked to take its three arguments."""
    module, _, attribute = name.rpartition(".")
    if not module:
        raise ValueError(f"unknown dataset {name!r}: {_WANTED}")
    try:
        make: Callable[..., Any] = getattr(_imported(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"dataset {name!r} cannot be imported ({error}): {_WANTED}"
        ) from error
    try:
        inspect.signature(make).bind(root="", train=True, download=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"dataset {name!r} cannot be called as cls(root=, train=, download=) "
            f"({error}): {_WANTED}"
        ) from error
    return make


def _imported(module: str) -> Any:
    # torchvision comes with our extra, and the error says so
    if module.startswith("torchvision"):
        return imported(module, "examples")
    return import_module(module)


def _read(
    name: str, make: Callable[..., Any], root: Path, download: bool
) -> tuple[Any, Any]:
    try:
        train = make(root=str(root), train=True, download=download)
        test = make(root=str(root), train=False, download=download)
    # torchvision's ways to say "not found", "corrupted", "not downloaded"
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"dataset {name!r} cannot be read from data-dir {root}: {error}"
        ) from error
    return train, test


def _images(dataset: Any) -> Tensor:
    """Return the images as `LabelledImages` holds them, (N, C, H, W)."""
    images = _channels_first(_pixels(dataset))
    _, channels, height, width = images.shape
    if channels not in (1, 3) or height != width:
        raise _wrong_shape(images)
    if images.dtype != torch.uint8:
        images = images.float()
        low = images.min()
        high = images.max()
        if not 0 <= low <= high <= 1:
            raise ValueError(
                f"images lie in [{low:g}, {high:g}]; wanted uint8, or floats in [0, 1]"
            )
    return images.contiguous()  # after a permutation batches would be slow to copy


def _pixels(dataset: Any) -> Tensor:
    """Return ``.data`` if there is one, which is fast; else read image by image."""
    if hasattr(dataset, "data"):
        return torch.as_tensor(dataset.data)
    images = [np.asarray(image) for image, _ in dataset]
    return torch.as_tensor(np.stack(images))


def _channels_first(images: Tensor) -> Tensor:
    if images.ndim == 3:
        return images.unsqueeze(1)  # (N, H, W), grey
    if images.ndim != 4:
        raise _wrong_shape(images)
    if images.shape[1] in (1, 3):
        return images
    return images.permute(0, 3, 1, 2)  # (N, H, W, C), as PIL and CIFAR-10 have it


def _wrong_shape(images: Tensor) -> ValueError:
    return ValueError(
        f"images have the shape {tuple(images.shape)}; "
        "wanted square ones of 1 or 3 channels"
    )


def _labels(dataset: Any) -> Tensor:
    """Return the classes, int64 (N,)."""
    if hasattr(dataset, "targets"):
        labels = torch.as_tensor(dataset.targets)
    else:
        labels = torch.as_tensor([label for _, label in dataset])
    if labels.ndim != 1 or labels.is_floating_point() or labels.min() < 0:
        raise ValueError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}; "
            "wanted a class number each, from 0"
        )
    return labels.long()
