"""The data that a run-config asks for."""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from flwr.app import Context
from torch import Tensor, nn

from flwr_splitfc.batches import Augment, Batches, evaluate, turn_batches
from flwr_splitfc.settings import RunConfig, read_settings
from flwr_splitfc.vision.images import Indices, LabelledImages, load_dataset
from flwr_splitfc.vision.partition import partition


@dataclass(frozen=True)
class DataSettings:
    """Which images devices share, and how, in a run-config: as in `load_dataset` and `partition`."""

    dataset: str = "digits"
    data_dir: str = ""
    download: bool = False
    num_devices: int = 2
    partitioner: str = "iid"
    shards_per_device: int = 2
    dirichlet_alpha: float = 0.5
    seed: int = 0


def datasets_of(config: RunConfig) -> tuple[LabelledImages, LabelledImages]:
    """The training and the test set that a run-config names."""
    settings = read_settings(DataSettings, config)
    return load_dataset(settings.dataset, settings.data_dir, settings.download)


def device_images(
    config: RunConfig, device: int, *, test: bool = False
) -> LabelledImages:
    """The images of device number `device` (its partition-id) in the run of a run-config.

    They are of the training set, or of the `test` set, which is divided in the same
    way: where devices have few classes, a device has about the same ones in both.
    """
    settings = read_settings(DataSettings, config)
    images = datasets_of(config)[test]
    shares = _partition_once(
        images,
        settings.num_devices,
        settings.partitioner,
        seed=settings.seed,
        alpha=settings.dirichlet_alpha,
        shards_per_device=settings.shards_per_device,
    )
    if not 0 <= device < len(shares):
        raise ValueError(
            f"device {device} has no share: num-devices is {len(shares)}, start as many SuperNodes"
        )
    return images.subset(shares[device])


@lru_cache(maxsize=2)
def _partition_once(
    images: LabelledImages, num_devices: int, how: str, **settings: Any
) -> list[Indices]:
    return partition(images.labels, num_devices, how, **settings)


@dataclass(frozen=True)
class _TestShare:
    """A device's share of the test set, not divided before it is used: it may be too small for so many devices."""

    config: RunConfig
    device: int

    @cached_property
    def _images(self) -> LabelledImages:
        return device_images(self.config, self.device, test=True)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: Tensor) -> tuple[Tensor, Tensor]:
        return self._images[index]


def load_data(
    context: Context, augment: Augment | None = None
) -> tuple[Batches, Batches]:
    """A device's shares of the training set and, to evaluate on, of the test set, for `SplitClientApp`."""
    config, device = context.run_config, int(context.node_config["partition-id"])
    return turn_batches(
        device_images(config, device), config, augment, test=_TestShare(config, device)
    )


def evaluate_on_test_set(model: nn.Module, context: Context) -> dict[str, float]:
    """Loss and accuracy of the whole model on the whole test set, for `SplitServerApp`."""
    return evaluate(model, datasets_of(context.run_config)[1])
