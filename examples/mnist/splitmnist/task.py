"""The task: the model's two halves, the data, and how devices share it."""

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

Indices = npt.NDArray[np.int64]
RunConfig = Mapping[str, bool | float | int | str]


class DatasetSpec(NamedTuple):
    """What the model must know of a dataset: square images of `channels` x `image_size` x `image_size`."""

    channels: int
    image_size: int
    num_classes: int


class DeviceHalf(nn.Sequential):
    """Two convolutions: images (B, C, H, W) to features (B, 32, S, S), of which `cut_size` is the S.

    Images below 16 pixels are not pooled. An 8 x 8 digit then has the cut of a 28 x 28 one, 32 x 6 x 6; pooled twice
    it would have 32 x 1 x 1, too few columns to choose from.
    """

    def __init__(self, in_channels: int = 1, image_size: int = 28) -> None:
        pool = _pool(image_size)
        super().__init__(
            nn.Conv2d(in_channels, 16, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(pool),
            nn.Conv2d(16, 32, kernel_size=3),
            nn.ReLU(),
            nn.MaxPool2d(pool),
        )


class ServerHalf(nn.Sequential):
    """Two linear layers: the features of `DeviceHalf` to logits (B, num_classes)."""

    def __init__(self, image_size: int = 28, num_classes: int = 10) -> None:
        super().__init__(
            nn.Flatten(),
            nn.Linear(32 * cut_size(image_size) ** 2, 128),
            nn.ReLU(),
            nn.Linear(128, num_classes),
        )


def _pool(image_size: int) -> int:
    return 2 if image_size >= 16 else 1


def cut_size(image_size: int) -> int:
    """Height and width of the feature maps at the cut; 6 for digits and MNIST, 7 for CIFAR-10."""
    pool = _pool(image_size)
    size = (image_size // pool - 2) // pool
    if size < 1:
        raise ValueError(f"image_size is {image_size}: the device half needs images of 3 x 3 pixels or more")
    return size


def device_half(spec: DatasetSpec, seed: int) -> DeviceHalf:
    """The device half with the initial weights of `seed`, the same in every process."""
    return _halves(spec, seed)[0]


def server_half(spec: DatasetSpec, seed: int) -> ServerHalf:
    """The server half with the initial weights of `seed`, the same in every process."""
    return _halves(spec, seed)[1]


def _halves(spec: DatasetSpec, seed: int) -> tuple[DeviceHalf, ServerHalf]:
    """Both halves from one stream of random numbers, so the joined model is one seeded model."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return DeviceHalf(spec.channels, spec.image_size), ServerHalf(spec.image_size, spec.num_classes)


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Float32 images (N, C, H, W) between 0 and 1, and their int64 labels (N,)."""

    images: Tensor
    labels: Tensor
    num_classes: int

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int | slice | Tensor) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]

    def subset(self, indices: Indices) -> "LabelledImages":
        """The samples at `indices`, in that order."""
        return LabelledImages(*self[torch.from_numpy(indices)], num_classes=self.num_classes)

    @property
    def spec(self) -> DatasetSpec:
        """What the model must know."""
        return DatasetSpec(self.images.shape[1], self.images.shape[2], self.num_classes)


@lru_cache(maxsize=2)
def load_dataset(name: str, data_dir: str = "", download: bool = True) -> tuple[LabelledImages, LabelledImages]:
    """The training and the test set of a dataset; a process reads them once.

    Parameters
    ----------
    name : str
        `digits`, which comes with scikit-learn (1,797 images of 8 x 8), or the dotted path of a class that is called
        as `torchvision.datasets.MNIST` is.
    data_dir : str (default: "")
        The class's `root`, an absolute path: a run's processes start in other folders than its user. Unused for digits.
    download : bool (default: True)
        Whether the class may download what is missing.
    """
    return _digits() if name == "digits" else _torchvision_style(name, data_dir, download)


def _digits() -> tuple[LabelledImages, LabelledImages]:
    """A fixed split, 1,438 to train and 359 to test."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images / 16).float().unsqueeze(1)  # (N, 1, 8, 8)
    everything = LabelledImages(images, torch.from_numpy(digits.target).long(), num_classes=10)
    order = np.random.default_rng(0).permutation(len(everything))
    num_test = len(everything) // 5
    return everything.subset(order[num_test:]), everything.subset(order[:num_test])


def _torchvision_style(name: str, data_dir: str, download: bool) -> tuple[LabelledImages, LabelledImages]:
    cls = _dataset_class(name)
    root = Path(data_dir).expanduser()
    if not root.is_absolute():
        raise ValueError(f"data-dir is {data_dir!r}; dataset {name!r} needs the absolute path of its data folder")
    if not download and not root.is_dir():
        raise FileNotFoundError(f"data-dir {root} does not exist; create it or set download=true")
    try:
        train, test = (cls(root=str(root), train=part, download=download) for part in (True, False))
    except (
        OSError,
        RuntimeError,
    ) as error:  # torchvision's ways to say "not found", "corrupted" or "could not download"
        raise ValueError(f"dataset {name!r} cannot be read from data-dir {root}: {error}") from error
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
        cls: Callable[..., Any] = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"dataset {name!r} cannot be imported ({error}): {wanted}") from error
    try:
        inspect.signature(cls).bind(root="", train=True, download=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"dataset {name!r} cannot be called as cls(root=, train=, download=) ({error}): {wanted}"
        ) from error
    return cls


def _images(dataset: Any) -> Tensor:
    """Its `.data` if it has one, which is fast; else image by image."""
    raw = dataset.data if hasattr(dataset, "data") else np.stack([np.asarray(image) for image, _ in dataset])
    images = torch.as_tensor(raw)
    if images.ndim == 3:
        images = images.unsqueeze(1)  # (N, H, W), grey
    elif images.ndim == 4 and images.shape[1] not in (1, 3):
        images = images.permute(0, 3, 1, 2)  # (N, H, W, C), as PIL and CIFAR-10 have it
    if images.ndim != 4 or images.shape[1] not in (1, 3) or images.shape[2] != images.shape[3]:
        raise ValueError(f"images have the shape {tuple(images.shape)}; wanted square ones of 1 or 3 channels")
    scaled = images.float().div_(255) if images.dtype == torch.uint8 else images.float()
    if not 0 <= scaled.min() <= scaled.max() <= 1:
        raise ValueError(f"images lie in [{scaled.min():g}, {scaled.max():g}]; wanted uint8, or floats in [0, 1]")
    return scaled.contiguous()


def _labels(dataset: Any) -> Tensor:
    labels = torch.as_tensor(dataset.targets if hasattr(dataset, "targets") else [label for _, label in dataset])
    if labels.ndim != 1 or labels.is_floating_point() or labels.min() < 0:
        raise ValueError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}; wanted a class number each, from 0"
        )
    return labels.long()


def partition(
    labels: Tensor,
    num_devices: int,
    how: str = "shards",
    *,
    seed: int = 0,
    alpha: float = 0.5,
    shards_per_device: int = 2,
) -> list[Indices]:
    """Which training samples each device has, by the partitioners of `flwr_datasets`.

    A sample is on one device at most, and on exactly one if `how` is not "shards".

    Parameters
    ----------
    labels : Tensor
        The labels of the training set, (N,).
    num_devices : int
        How many devices share it.
    how : str (default: "shards")
        "iid", equal shares at random; "dirichlet", each class divided by a draw from Dirichlet(`alpha`), so devices
        differ in size and in classes; "shards", the set sorted by label and cut into equal shards, of which each device
        gets `shards_per_device`. Shards are equal because up to `num_devices * shards_per_device - 1` samples, drawn
        at random, are left out.
    """
    if how not in _PARTITIONERS:
        raise ValueError(f"unknown partitioner {how!r}: use one of {', '.join(sorted(_PARTITIONERS))}")
    least = num_devices * (shards_per_device if how == "shards" else 1)
    if not 1 <= least <= len(labels):
        raise ValueError(
            f"{num_devices} devices cannot share {len(labels)} samples by {how!r}"
            + (f" with {shards_per_device} shards each" if how == "shards" else "")
        )
    order = np.random.default_rng(seed).permutation(len(labels))
    if how == "shards":
        order = order[: len(order) // least * least]
    from datasets import Dataset

    partitioner = _PARTITIONERS[how](num_devices, seed, alpha, shards_per_device)
    partitioner.dataset = Dataset.from_dict({"sample": order, "label": labels.numpy()[order]})
    try:
        with warnings.catch_warnings():  # how `datasets` asks pyarrow to sort; nothing a user can change
            warnings.filterwarnings("ignore", "Specifying null_placement", FutureWarning)
            return [np.asarray(partitioner.load_partition(device)["sample"], np.int64) for device in range(num_devices)]
    except ValueError as error:
        raise ValueError(f"{how!r} leaves one of {num_devices} devices without samples; raise its alpha") from error


def _iid(num_devices: int, seed: int, alpha: float, shards_per_device: int) -> Any:
    from flwr_datasets.partitioner import IidPartitioner

    return IidPartitioner(num_devices)


def _dirichlet(num_devices: int, seed: int, alpha: float, shards_per_device: int) -> Any:
    from flwr_datasets.partitioner import DirichletPartitioner

    return DirichletPartitioner(num_devices, "label", alpha=float(alpha), min_partition_size=1, seed=seed)


def _shards(num_devices: int, seed: int, alpha: float, shards_per_device: int) -> Any:
    from flwr_datasets.partitioner import ShardPartitioner

    return ShardPartitioner(num_devices, "label", num_shards_per_partition=shards_per_device, seed=seed)


_PARTITIONERS: dict[str, Callable[[int, int, float, int], Any]] = {
    "dirichlet": _dirichlet,
    "iid": _iid,
    "shards": _shards,
}


def datasets_of(config: RunConfig) -> tuple[LabelledImages, LabelledImages]:
    """The training and the test set that a run-config names."""
    return load_dataset(str(config["dataset"]), str(config["data-dir"]), bool(config["download"]))


def device_data(config: RunConfig, device: int) -> LabelledImages:
    """The training samples of device number `device` (its partition-id) in the run of a run-config."""
    train, _ = datasets_of(config)
    shares = _partition_once(
        train,
        int(config["num-devices"]),
        str(config["partitioner"]),
        seed=int(config["seed"]),
        alpha=float(config["dirichlet-alpha"]),
        shards_per_device=int(config["shards-per-device"]),
    )
    if not 0 <= device < len(shares):
        raise ValueError(f"device {device} has no share: num-devices is {len(shares)}, start as many SuperNodes")
    return train.subset(shares[device])


@lru_cache(maxsize=1)
def _partition_once(train: LabelledImages, num_devices: int, how: str, **settings: Any) -> list[Indices]:
    return partition(train.labels, num_devices, how, **settings)


@dataclass(frozen=True, eq=False)
class Batches:
    """Batches of one turn, sliced from tensors; the order comes from torch's global generator.

    With `steps`, as many batches of exactly `batch_size`, drawn with replacement; without, one shuffled epoch.
    """

    data: LabelledImages
    batch_size: int
    steps: int = 0

    def __len__(self) -> int:
        return self.steps or -(-len(self.data) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (self.data[indices] for indices in self._indices())

    def _indices(self) -> Iterator[Tensor]:
        if self.steps:
            return (torch.randint(len(self.data), (self.batch_size,)) for _ in range(self.steps))
        return iter(torch.randperm(len(self.data)).split(self.batch_size))


def train_loader(data: LabelledImages, batch_size: int, steps_per_turn: int = 0) -> Batches:
    """The batches of one turn: `steps_per_turn` of them, or an epoch if that is 0."""
    if batch_size < 1 or steps_per_turn < 0:
        raise ValueError(
            f"batch-size is {batch_size} and steps-per-turn {steps_per_turn}; wanted at least 1 and at least 0"
        )
    return Batches(data, batch_size, steps_per_turn)


def evaluate(model: nn.Module, test: LabelledImages, batch_size: int = 1000) -> dict[str, float]:
    """Mean cross-entropy and accuracy of the joined model, which is left in the mode it was in."""
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    loss, correct = 0.0, 0
    with torch.inference_mode():
        for start in range(0, len(test), batch_size):
            images, labels = (part.to(device) for part in test[start : start + batch_size])
            logits = model(images)
            loss += F.cross_entropy(logits, labels, reduction="sum").item()
            correct += int((logits.argmax(1) == labels).sum())
    model.train(was_training)
    return {"loss": loss / len(test), "accuracy": correct / len(test)}
