"""Decoder networks: from features, as the server has them, back to inputs.

The shapes of one sample's features and of its input choose the network.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import ceil, log2, prod

from torch import Tensor, nn
from torch.nn import functional as F

_HIDDEN = 512  # units of a layer without places
_LEAST_WIDTH = 16  # of a convolution; each doubling of the side halves it
_COARSE = 4  # an image side over that from which features without places start


def is_image(shape: Sequence[int]) -> bool:
    """Tell whether one sample has channels, height and width."""
    return len(shape) == 3


def decoder_for(
    features: Sequence[int], inputs: Sequence[int], width: int = 64, *, tokens: int = 0
) -> nn.Module:
    """Return a network from features (B, ...) to inputs (B, ...).

    Maps become images by convolutions, each after a doubling of the side. Features
    without places become such maps first. Inputs that are no images come from two
    hidden layers, and tokens (T,) from features (T, C) by convolutions over the places.

    Parameters
    ----------
    features, inputs : sequence of int
        Shapes of one sample: (C, H, W) for maps and for images, anything else for what
        has no places.
    width : int (default: 64)
        Channels of the convolutions.
    tokens : int (default: 0)
        How many different tokens there are, where inputs are such: the network gives
        scores (B, tokens, ...). 0 for inputs that are numbers.

    Examples
    --------
    >>> import torch
    >>> decoder = decoder_for((32, 6, 6), (1, 28, 28), width=8)
    >>> decoder(torch.zeros(2, 32, 6, 6)).shape
    torch.Size([2, 1, 28, 28])
    """
    if tokens:
        have_places = len(features) == 2 and features[0] == inputs[0]
        if have_places:
            return _TokenDecoder(features[1], width, tokens)
        return _dense(prod(features), (tokens, *inputs))
    if not is_image(inputs):
        return _dense(prod(features), inputs)
    channels, *sides = inputs
    if is_image(features):
        return _MapDecoder(features, channels, sides, width)
    coarse_sides = [ceil(side / _COARSE) for side in sides]
    start = (width, *coarse_sides)
    linear = nn.Linear(prod(features), prod(start))
    places = nn.Sequential(nn.Flatten(), linear, nn.Unflatten(1, start))
    maps = _MapDecoder(start, channels, sides, width)
    return nn.Sequential(places, maps)


def _dense(entries: int, inputs: Sequence[int]) -> nn.Sequential:
    sizes = (entries, _HIDDEN, _HIDDEN)
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise(sizes):
        layers.append(nn.Linear(before, after))
        layers.append(nn.ReLU())
    layers.append(nn.Linear(_HIDDEN, prod(inputs)))
    layers.append(nn.Unflatten(1, tuple(inputs)))
    return nn.Sequential(*layers)


class _MapDecoder(nn.Module):
    """Maps (B, C, H, W) to images of the given sides."""

    def __init__(
        self, features: Sequence[int], channels: int, sides: Sequence[int], width: int
    ) -> None:
        super().__init__()
        self._sides = tuple(sides)
        maps, *map_sides = features
        entry = _convolution(maps, width)
        self.first = nn.Sequential(entry, _Residual(width))
        widths = _widths(width, _doublings(map_sides, sides))
        self.stages = nn.ModuleList()
        for before, after in pairwise(widths):
            stage = _convolution(before, after)
            self.stages.append(stage)
        last_width = widths[-1]
        self.last = nn.Sequential(
            _convolution(last_width, last_width),
            nn.Conv2d(last_width, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the images (B, channels, height, width)."""
        x = self.first(x)
        for stage in self.stages:
            # convolved first: a quarter of the work
            x = F.interpolate(stage(x), scale_factor=2.0)
        if x.shape[2:] != self._sides:
            x = F.interpolate(x, self._sides, mode="bilinear", antialias=True)
        images: Tensor = self.last(x)
        return images


def _doublings(map_sides: Sequence[int], sides: Sequence[int]) -> int:
    """Return how often maps double until no side is shorter than the image's."""
    ratios = []
    for map_side, side in zip(map_sides, sides, strict=True):
        ratios.append(side / map_side)
    doublings = ceil(log2(max(ratios)))
    return max(0, doublings)


def _widths(width: int, doublings: int) -> list[int]:
    """Return the channels at first and after each doubling of the side."""
    least = min(width, _LEAST_WIDTH)
    widths = []
    for doubled in range(doublings + 1):
        halved = width >> doubled
        widths.append(max(halved, least))
    return widths


class _TokenDecoder(nn.Module):
    """Features (B, T, C) to scores (B, tokens, T)."""

    def __init__(self, channels: int, width: int, tokens: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(channels, width, 5, padding=2),
            nn.ReLU(),
            nn.Conv1d(width, width, 5, padding=2),
            nn.ReLU(),
            nn.Conv1d(width, tokens, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores; a convolution has channels before places."""
        scores: Tensor = self.layers(x.transpose(1, 2))
        return scores


class _Residual(nn.Module):
    """A convolution beside a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution = _convolution(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the input and what the convolution adds to it."""
        added: Tensor = self.convolution(x)
        return x + added


def _convolution(before: int, after: int) -> nn.Sequential:
    convolution = nn.Conv2d(before, after, 3, padding=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU())
