"""The model in two halves, and what a device does to its images before it trains on them."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from flwr.app import Context
from torch import Tensor, nn
from torch.nn import functional as F

from flwr_splitfc import split_at
from flwr_splitfc.settings import RunConfig, check_choice, read_settings
from flwr_splitfc.vision import Batches, DatasetSpec, datasets_of, load_data

LEAST_SIZE = 32

Norm = Callable[[int], nn.Module]
"""Makes the normalisation of so many channels."""

NORMS: dict[str, Norm] = {
    "group": lambda channels: nn.GroupNorm(channels // 8, channels),
    "batch": nn.BatchNorm2d,
}


def vgg11(spec: DatasetSpec, width: float, norm: Norm) -> nn.Sequential:
    """VGG-11's five stages, each halving the image, and one linear layer; `norm` after each convolution."""
    channels = [spec.channels, *_widened((64, 128, 256, 512, 512), width)]
    convolutions = (1, 1, 2, 2, 2)
    stages = [
        _vgg_stage(*ends, count, norm)
        for ends, count in zip(pairwise(channels), convolutions, strict=True)
    ]
    stages[0].insert(0, _Centred())
    return nn.Sequential(*stages, _Classifier(channels[-1], spec.num_classes))


def resnet18(spec: DatasetSpec, width: float, norm: Norm) -> nn.Sequential:
    """ResNet-18 for small images: a 3 x 3 stem, four stages of two blocks, and one linear layer."""
    channels = _widened((64, 64, 128, 256, 512), width)
    stem = nn.Sequential(
        _Centred(), _convolution(spec.channels, channels[0], norm), nn.ReLU()
    )
    strides = (1, 2, 2, 2)
    stages = [
        _resnet_stage(*ends, stride, norm)
        for ends, stride in zip(pairwise(channels), strides, strict=True)
    ]
    return nn.Sequential(stem, *stages, _Classifier(channels[-1], spec.num_classes))


def cnn(spec: DatasetSpec, width: float, norm: Norm) -> nn.Sequential:
    """Three convolutions, each halving the image, and one linear layer: learns something in a few hundred steps."""
    channels = [spec.channels, *_widened((32, 64, 64), width)]
    stages = [_vgg_stage(*ends, 1, norm) for ends in pairwise(channels)]
    stages[0].insert(0, _Centred())
    entries = channels[-1] * (spec.image_size // 8) ** 2
    return nn.Sequential(
        *stages, nn.Sequential(nn.Flatten(), nn.Linear(entries, spec.num_classes))
    )


MODELS: dict[str, tuple[Callable[[DatasetSpec, float, Norm], nn.Sequential], int]] = {
    # cut after the second stage: 128 x 8 x 8 for 32 x 32 images at width 1
    "vgg11": (vgg11, 1),
    "resnet18": (resnet18, 2),  # likewise: 128 x 16 x 16
    "cnn": (cnn, 1),  # likewise: 64 x 8 x 8
}


class _Centred(nn.Module):
    """Pixels from [0, 1] to [-2, 2]: GroupNorm leaves a channel the offset that it has from the images' mean."""

    def forward(self, x: Tensor) -> Tensor:
        return 4 * x - 2


def _convolution(
    channels_in: int, channels_out: int, norm: Norm, stride: int = 1
) -> nn.Sequential:
    """3 x 3, and normalised."""
    convolution = nn.Conv2d(
        channels_in, channels_out, kernel_size=3, stride=stride, padding=1, bias=False
    )
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, norm(channels_out))


class _Classifier(nn.Sequential):
    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes)
        )


class _Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(
        self, channels_in: int, channels_out: int, stride: int, norm: Norm
    ) -> None:
        super().__init__()
        self.first = _convolution(channels_in, channels_out, norm, stride)
        self.second = _convolution(channels_out, channels_out, norm)
        same = channels_in == channels_out and stride == 1
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))


def _vgg_stage(
    channels_in: int, channels_out: int, count: int, norm: Norm
) -> nn.Sequential:
    channels = [channels_in, *[channels_out] * count]
    layers = [
        layer
        for ends in pairwise(channels)
        for layer in (_convolution(*ends, norm), nn.ReLU())
    ]
    return nn.Sequential(*layers, nn.MaxPool2d(2))


def _resnet_stage(
    channels_in: int, channels_out: int, stride: int, norm: Norm
) -> nn.Sequential:
    return nn.Sequential(
        _Block(channels_in, channels_out, stride, norm),
        _Block(channels_out, channels_out, 1, norm),
    )


def _widened(channels: tuple[int, ...], width: float) -> list[int]:
    """Multiples of eight, the size of a group."""
    return [max(8, 8 * round(count * width / 8)) for count in channels]


@dataclass(frozen=True)
class ModelSettings:
    """What the run-config says about the model, and whether devices augment their images."""

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
    """The run-config's model for images of `spec`, cut after its early stages."""
    if spec.image_size < LEAST_SIZE:
        raise ValueError(
            f"image_size is {spec.image_size}: the model needs {LEAST_SIZE} x {LEAST_SIZE} pixels or more"
        )
    settings = read_settings(ModelSettings, config)
    make, cut = MODELS[settings.model]
    return split_at(make(spec, settings.width, NORMS[settings.norm]), cut)


def make_device_half(context: Context) -> nn.Module:
    """The early stages, for the run's data set."""
    return halves(datasets_of(context.run_config)[0].spec, context.run_config)[0]


def make_server_half(context: Context) -> nn.Module:
    """The rest, without the classifier where that is the devices' (``u-shaped``)."""
    rest = _rest(context)
    return split_at(rest, -2)[0] if context.run_config.get("u-shaped") else rest


def make_tail(context: Context) -> nn.Module:
    """The classifier."""
    return split_at(_rest(context), -2)[1]


def _rest(context: Context) -> nn.Module:
    return halves(datasets_of(context.run_config)[0].spec, context.run_config)[1]


def crop_and_flip(images: Tensor, margin: int = 4) -> Tensor:
    """Each image (B, C, H, W) moved by up to `margin` pixels in each direction and mirrored or not, at random."""
    batch, _, height, width = images.shape
    rows = torch.randint(2 * margin + 1, (batch, 1)) + torch.arange(height)
    columns = torch.randint(2 * margin + 1, (batch, 1)) + torch.arange(width)
    columns = torch.where(torch.rand(batch, 1) < 0.5, columns.flip(1), columns)
    padded = F.pad(images, 4 * [margin])
    # (B, H, W, C)
    moved = padded[
        torch.arange(batch)[:, None, None], :, rows[:, :, None], columns[:, None, :]
    ]
    return moved.permute(0, 3, 1, 2).contiguous()


def load_augmented_data(context: Context) -> tuple[Batches, Batches]:
    """A device's share, to train on as the run-config's key ``augment`` says."""
    augment = read_settings(ModelSettings, context.run_config).augment
    return load_data(context, crop_and_flip if augment else None)
