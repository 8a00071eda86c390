"""Convolutional networks for small photographs, and where they are cut."""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from flwr_splitfc.vision import DatasetSpec

GROUP = 8  # channels that GroupNorm normalises together

Norm = Callable[[int], nn.Module]
"""Makes the normalisation of so many channels."""


def group_norm(channels: int) -> nn.Module:
    """Normalise each image's groups of eight channels."""
    return nn.GroupNorm(channels // GROUP, channels)


NORMS: dict[str, Norm] = {"group": group_norm, "batch": nn.BatchNorm2d}


def vgg11(spec: DatasetSpec, width: float, norm: Norm) -> nn.Sequential:
    """Return VGG-11: five stages that halve the image, and one linear layer.

    `norm` comes after each convolution.
    """
    channels = _widened((64, 128, 256, 512, 512), width)
    convolutions = (1, 1, 2, 2, 2)
    stages = []
    ends = pairwise([spec.channels, *channels])
    for (before, after), count in zip(ends, convolutions, strict=True):
        stages.append(_vgg_stage(before, after, count, norm))
    stages[0].insert(0, _Centred())
    return nn.Sequential(*stages, _Classifier(channels[-1], spec.num_classes))


def resnet18(spec: DatasetSpec, width: float, norm: Norm) -> nn.Sequential:
    """Return ResNet-18 for small images: a 3 x 3 stem and four stages of two blocks."""
    channels = _widened((64, 64, 128, 256, 512), width)
    strides = (1, 2, 2, 2)
    stem = nn.Sequential(
        _Centred(), _convolution(spec.channels, channels[0], norm), nn.ReLU()
    )
    stages = []
    for (before, after), stride in zip(pairwise(channels), strides, strict=True):
        stages.append(_resnet_stage(before, after, stride, norm))
    return nn.Sequential(stem, *stages, _Classifier(channels[-1], spec.num_classes))


def cnn(spec: DatasetSpec, width: float, norm: Norm) -> nn.Sequential:
    """Return three convolutions that halve the image, and one linear layer.

    It learns something in a few hundred steps.
    """
    channels = _widened((32, 64, 64), width)
    stages = []
    for before, after in pairwise([spec.channels, *channels]):
        stages.append(_vgg_stage(before, after, 1, norm))
    stages[0].insert(0, _Centred())
    entries = channels[-1] * (spec.image_size // 8) ** 2
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(entries, spec.num_classes))
    return nn.Sequential(*stages, classifier)


class CutModel(NamedTuple):
    """A model, and the stage after which it is cut."""

    make: Callable[[DatasetSpec, float, Norm], nn.Sequential]
    last_device_stage: int


# the cut's shapes are those of 32 x 32 images at width 1
MODELS = {
    "vgg11": CutModel(vgg11, 1),  # 128 x 8 x 8
    "resnet18": CutModel(resnet18, 2),  # 128 x 16 x 16
    "cnn": CutModel(cnn, 1),  # 64 x 8 x 8
}


class _Centred(nn.Module):
    """Maps pixels from [0, 1] to [-2, 2].

    GroupNorm leaves a channel the offset that it has from the images' mean.
    """

    def forward(self, x: Tensor) -> Tensor:
        return 4 * x - 2


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
        self.shortcut: nn.Module = nn.Identity()
        if channels_in != channels_out or stride != 1:
            self.shortcut = nn.Conv2d(
                channels_in, channels_out, kernel_size=1, stride=stride, bias=False
            )

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.first(x))
        return F.relu(self.second(hidden) + self.shortcut(x))


def _convolution(
    channels_in: int, channels_out: int, norm: Norm, stride: int = 1
) -> nn.Sequential:
    """Return a 3 x 3 convolution and its normalisation."""
    convolution = nn.Conv2d(
        channels_in, channels_out, kernel_size=3, stride=stride, padding=1, bias=False
    )
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, norm(channels_out))


def _vgg_stage(
    channels_in: int, channels_out: int, count: int, norm: Norm
) -> nn.Sequential:
    """Return `count` convolutions and a pooling that halves the image."""
    stage = nn.Sequential()
    for number in range(count):
        before = channels_in if number == 0 else channels_out
        stage.append(_convolution(before, channels_out, norm))
        stage.append(nn.ReLU())
    return stage.append(nn.MaxPool2d(2))


def _resnet_stage(
    channels_in: int, channels_out: int, stride: int, norm: Norm
) -> nn.Sequential:
    return nn.Sequential(
        _Block(channels_in, channels_out, stride, norm),
        _Block(channels_out, channels_out, 1, norm),
    )


def _widened(channels: tuple[int, ...], width: float) -> list[int]:
    """Return the layers' channels times `width`, as multiples of a group."""
    return [max(GROUP, GROUP * round(count * width / GROUP)) for count in channels]
