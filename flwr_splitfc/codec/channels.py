"""Channels: which columns of the flattened features belong together.

Features (B, C, H, W) are flattened to (B, D) with ``D = C H W``. In general the
channel's dimension stands between ``outer`` and ``inner`` others, and column
``(o * count + c) * inner + i`` belongs to channel ``c``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import numpy as np
import torch
from torch import Tensor

from flwr_splitfc.codec.arrays import Doubles
from flwr_splitfc.codec.compiled import compiled

LARGEST_KLT = 512
"""Channels or rows; for more there is no KLT, whose matrix grows with their square."""

_KNOWN_SHAPES = 64


def _channel_position(shape: Sequence[int], dim: int | None) -> int | None:
    """Return the channel's dimension: `dim`, or what the shape tells.

    A flat (B, D) has none.
    """
    if dim is None:
        if len(shape) <= 2:
            return None
        dim = 2 if len(shape) == 3 else 1
    dimensions = len(shape)
    position = dim if dim >= 0 else dim + dimensions
    if not 1 <= position < dimensions:
        raise ValueError(
            f"channel_dim {dim} is not a feature dimension of shape {tuple(shape)}"
        )
    return position


def other_channel_dim(shape: Sequence[int]) -> int | None:
    """Return where channels may be that are not where they usually are.

    That is dimension 1 of (B, C, T), and the last of (B, ..., C). A flat (B, D) has no
    other.

    >>> other_channel_dim((8, 16, 100)), other_channel_dim((8, 7, 7, 96))
    (1, 3)
    """
    if len(shape) <= 2:
        return None
    return 1 if len(shape) == 3 else len(shape) - 1


@dataclass(frozen=True)
class Channels:
    """The ``D`` columns seen as (outer, count, inner), with the channel in the middle.

    Examples
    --------
    >>> Channels.of((8, 32, 6, 6))
    Channels(outer=1, count=32, inner=36)
    >>> Channels.of((8, 49, 64))
    Channels(outer=49, count=64, inner=1)
    >>> Channels.of((8, 1152), channels=32)
    Channels(outer=1, count=32, inner=36)
    """

    outer: int
    count: int
    inner: int

    @classmethod
    @lru_cache(_KNOWN_SHAPES)
    def of(
        cls,
        shape: tuple[int, ...],
        *,
        channels: int | None = None,
        dim: int | None = None,
    ) -> Channels:
        """Find the channels of features of this shape.

        Parameters
        ----------
        shape : tuple of int
            (B, D), (B, T, C) with the channel last, or (B, C, ...) with the channel in
            dimension 1.
        channels : int, optional
            How many equal contiguous groups a flat (B, D) has; default ``D``.
        dim : int, optional
            The channel's dimension, where the shape does not tell.

        Raises
        ------
        ValueError
            If `dim` is no dimension of the features, or `channels` contradicts the
            shape.
        """
        position = _channel_position(shape, dim)
        if position is None:
            return cls._of_groups(prod(shape[1:]), channels)
        count = shape[position]
        if channels is not None and channels != count:
            raise ValueError(
                f"channels={channels}, "
                f"but dimension {position} of shape {tuple(shape)} has {count}"
            )
        outer = prod(shape[1:position])
        inner = prod(shape[position + 1 :])
        return cls(outer, count, inner)

    @property
    def columns(self) -> int:
        """All columns, ``D``."""
        return self.outer * self.count * self.inner

    @classmethod
    def _of_groups(cls, width: int, channels: int | None) -> Channels:
        count = width if channels is None else channels
        if count < 1 or width % count:
            raise ValueError(
                f"channels={channels} does not divide {width} columns into equal groups"
            )
        return cls(1, count, width // count)

    def spans(self, low: Tensor, high: Tensor) -> Tensor:
        """Return, for every column, maximum minus minimum of its channel, (D,).

        Parameters
        ----------
        low, high : Tensor
            Minimum and maximum of every column, float64 (D,) on the CPU.
        """
        spans = _spans(low.numpy(), high.numpy(), self.outer, self.count, self.inner)
        return torch.from_numpy(spans)


@compiled
def _spans(low: Doubles, high: Doubles, outer: int, count: int, inner: int) -> Doubles:
    spans = np.empty(len(low))
    for channel in range(count):
        least, greatest = np.inf, -np.inf
        for o in range(outer):
            begin = (o * count + channel) * inner
            for column in range(begin, begin + inner):
                least = min(least, low[column])
                greatest = max(greatest, high[column])
        for o in range(outer):
            begin = (o * count + channel) * inner
            for column in range(begin, begin + inner):
                spans[column] = greatest - least
    return spans


@dataclass(frozen=True)
class Layout:
    """The ``D`` columns as channels, and the axes of a channel's map.

    Parameters
    ----------
    channels : Channels
        Which columns belong to which channel.
    axes : tuple of int
        The sizes of the map's dimensions, in order; none for a flat (B, D), whose
        groups of columns are no map.

    Examples
    --------
    >>> Layout.of((8, 32, 6, 6))
    Layout(channels=Channels(outer=1, count=32, inner=36), axes=(6, 6))
    >>> Layout.of((8, 1152), channels=32)
    Layout(channels=Channels(outer=1, count=32, inner=36), axes=())
    """

    channels: Channels
    axes: tuple[int, ...]

    @classmethod
    @lru_cache(_KNOWN_SHAPES)
    def of(
        cls,
        shape: tuple[int, ...],
        *,
        channels: int | None = None,
        dim: int | None = None,
    ) -> Layout:
        """Find the layout of features of this shape.

        Parameters and errors are those of `Channels.of`.
        """
        found = Channels.of(shape, channels=channels, dim=dim)
        position = _channel_position(shape, dim)
        if position is None:
            return cls(found, ())
        before = shape[1:position]
        after = shape[position + 1 :]
        return cls(found, (*before, *after))

    @property
    def places(self) -> int:
        """Entries of a channel's map, ``f``."""
        return self.channels.outer * self.channels.inner

    def split(self, matrix: Tensor) -> Tensor:
        """Reorder (B, D) to (B, C, f): a map of ``f`` places for each channel."""
        channels = self.channels
        parts = matrix.view(-1, channels.outer, channels.count, channels.inner)
        by_channel = parts.transpose(1, 2)
        return by_channel.reshape(-1, channels.count, self.places)

    def join(self, maps: Tensor) -> Tensor:
        """Reorder (B, C, f) to (B, D), undoing `split`."""
        channels = self.channels
        by_channel = maps.view(-1, channels.count, channels.outer, channels.inner)
        parts = by_channel.transpose(1, 2)
        return parts.reshape(-1, channels.columns)
