"""The data that a run-config asks for."""

from dataclasses import dataclass
from functools import cached_property, lru_cache

from flwr.app import Context
from torch import Tensor, nn

from flwr_splitfc.batches import Augment, Batches, evaluate, turn_batches
from flwr_splitfc.settings import RunConfig, read_settings
from flwr_splitfc.vision.images import Indices, LabelledImages
from flwr_splitfc.vision.loading import load_dataset
from flwr_splitfc.vision.partition import partition


@dataclass(frozen=True)
class DataSettings:
    """Which images devices share, and how, in a run-config.

    The keys are the parameters of `load_dataset` and `partition`.
    """

    dataset: str = "digits"
    data_dir: str = ""
    download: bool = False
    num_devices: int = 2
    partitioner: str = "iid"
    shards_per_device: int = 2
    dirichlet_alpha: float = 0.5
    seed: int = 0


def datasets_of(config: RunConfig) -> tuple[LabelledImages, LabelledImages]:
    """Return the training and the test set that a run-config names."""
    settings = read_settings(DataSettings, config)
    return load_dataset(settings.dataset, settings.data_dir, settings.download)


def device_images(
    config: RunConfig, device: int, *, test: bool = False
) -> LabelledImages:
    """Return the images of device number `device` (its partition-id) in a run.

    They are of the training set, or of the `test` set, which is divided in the same
    way: where devices have few classes, a device has about the same ones in both.

    Raises
    ------
    ValueError
        If the run-config has no such device, or too few images for its devices.
    """
    settings = read_settings(DataSettings, config)
    # divided alike, by one seed
    train_set, test_set = datasets_of(config)
    images = test_set if test else train_set
    shares = _shares(images, settings)
    if not 0 <= device < len(shares):
        raise ValueError(
            f"device {device} has no share: num-devices is {len(shares)}, "
            "start as many SuperNodes"
        )
    return images.subset(shares[device])


@lru_cache(maxsize=2)
def _shares(images: LabelledImages, settings: DataSettings) -> list[Indices]:
    """Return the devices' shares; a process divides each of the two sets once."""
    return partition(
        images.labels,
        settings.num_devices,
        settings.partitioner,
        seed=settings.seed,
        alpha=settings.dirichlet_alpha,
        shards_per_device=settings.shards_per_device,
    )


@dataclass(frozen=True)
class _TestShare:
    """A device's share of the test set, divided when it is first used.

    The test set may be too small for so many devices, which matters only to those that
    evaluate.
    """

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
    """Return a device's shares of the training and the test set, for `SplitClientApp`.

    It trains on the one, each batch changed by `augment`, and evaluates on the other.
    """
    config = context.run_config
    device = int(context.node_config["partition-id"])
    images = device_images(config, device)
    return turn_batches(images, config, augment, test=_TestShare(config, device))


def evaluate_on_test_set(model: nn.Module, context: Context) -> dict[str, float]:
    """Return the whole model's loss and accuracy on the test set.

    It is an `evaluate` for `SplitServerApp`.
    """
    _, test_set = datasets_of(context.run_config)
    return evaluate(model, test_set)
