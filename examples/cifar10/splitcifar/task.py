"""The model in two halves, and what a device does to its images to train on them."""

from dataclasses import dataclass

import torch
from flwr.app import Context
from torch import Tensor, nn
from torch.nn import functional as F

from flwr_splitfc import AuxiliaryHead, split_at
from flwr_splitfc.settings import RunConfig, check_choice, read_settings
from flwr_splitfc.vision import Batches, DatasetSpec, datasets_of, load_data
from splitcifar.models import MODELS, NORMS

LEAST_SIZE = 32  # pixels; five poolings leave one


@dataclass(frozen=True)
class ModelSettings:
    """The model, and whether devices augment their images, in a run-config.

    Parameters
    ----------
    model : str
        A key of `MODELS`.
    width : float
        A multiplier of the channels of all layers.
    norm : str
        A key of `NORMS`.
    augment : bool
    """

    model: str = "vgg11"
    width: float = 1.0
    norm: str = "group"
    augment: bool = True

    def __post_init__(self) -> None:
        check_choice("model", self.model, MODELS)
        check_choice("norm", self.norm, NORMS)
        if not 0 < self.width <= 8:
            raise ValueError(f"width is {self.width}, wanted more than 0 and at most 8")


def halves(spec: DatasetSpec, config: RunConfig) -> tuple[nn.Module, nn.Module]:
    """Return the run-config's model for images of `spec`, cut after early stages."""
    if spec.image_size < LEAST_SIZE:
        raise ValueError(
            f"image_size is {spec.image_size}: "
            f"the model needs {LEAST_SIZE} x {LEAST_SIZE} pixels or more"
        )
    settings = read_settings(ModelSettings, config)
    kind = MODELS[settings.model]
    model = kind.make(spec, settings.width, NORMS[settings.norm])
    return split_at(model, kind.last_device_stage)


def make_device_half(context: Context) -> nn.Module:
    """Return the early stages, for the run's data set."""
    device_half, _ = _halves(context)
    return device_half


def make_server_half(context: Context) -> nn.Module:
    """Return the rest, for the run's data set.

    Where the classifier is the devices' (``u-shaped``) it is left out.
    """
    _, rest = _halves(context)
    if not context.run_config.get("u-shaped"):
        return rest
    middle, _ = split_at(rest, -2)
    return middle


def make_tail(context: Context) -> nn.Module:
    """Return the classifier."""
    _, rest = _halves(context)
    _, tail = split_at(rest, -2)
    return tail


def make_auxiliary(context: Context) -> AuxiliaryHead:
    """Return a head that scores the features, for device halves to learn from."""
    train, _ = datasets_of(context.run_config)
    device_half, _ = _halves(context)
    side = train.spec.image_size
    image = torch.zeros(1, train.spec.channels, side, side)
    features = device_half(image)
    return AuxiliaryHead(features.shape[1:], train.spec.num_classes)


def _halves(context: Context) -> tuple[nn.Module, nn.Module]:
    train, _ = datasets_of(context.run_config)
    return halves(train.spec, context.run_config)


def crop_and_flip(images: Tensor, margin: int = 4) -> Tensor:
    """Return images (B, C, H, W), each moved and mirrored at random.

    An image moves by up to `margin` pixels in each direction; black comes in at the
    border.
    """
    batch, _, height, width = images.shape
    places = 2 * margin + 1
    top = torch.randint(places, (batch, 1))
    left = torch.randint(places, (batch, 1))
    mirrored = torch.rand(batch, 1) < 0.5
    rows = top + torch.arange(height)
    columns = left + torch.arange(width)
    columns = torch.where(mirrored, columns.flip(1), columns)

    padded = F.pad(images, 4 * [margin])
    image = torch.arange(batch)[:, None, None]
    # the slice between indices puts channels last: (B, H, W, C)
    moved = padded[image, :, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2).contiguous()


def load_augmented_data(context: Context) -> tuple[Batches, Batches]:
    """Return a device's share, augmented for training if the run-config says so."""
    settings = read_settings(ModelSettings, context.run_config)
    return load_data(context, crop_and_flip if settings.augment else None)
