"""Which columns of the flattened features belong to one channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from torch import Tensor


def channel_position(shape: Sequence[int], dim: int | None = None) -> int | None:
    """Which dimension is the channel's: `dim`, or what the shape tells; None for a flat (B, D)."""
    if dim is None and len(shape) <= 2:
        return None
    if dim is None:
        dim = 2 if len(shape) == 3 else 1
    position = dim + len(shape) if dim < 0 else dim
    if not 1 <= position < len(shape):
        raise ValueError(
            f"channel_dim {dim} is not a feature dimension of shape {tuple(shape)}"
        )
    return position


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
    def of(
        cls,
        shape: Sequence[int],
        *,
        channels: int | None = None,
        dim: int | None = None,
    ) -> Channels:
        """Find the channels of features of this shape.

        Parameters
        ----------
        shape : sequence of int
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
        position = channel_position(shape, dim)
        if position is None:
            return cls._groups(prod(shape[1:]), channels)
        if channels is not None and channels != shape[position]:
            raise ValueError(
                f"channels={channels}, but dimension {position} of shape {tuple(shape)} has {shape[position]}"
            )
        return cls(
            prod(shape[1:position]), shape[position], prod(shape[position + 1 :])
        )

    @classmethod
    def _groups(cls, width: int, channels: int | None) -> Channels:
        count = width if channels is None else channels
        if count < 1 or width % count:
            raise ValueError(
                f"channels={channels} does not divide {width} columns into equal groups"
            )
        return cls(1, count, width // count)

    def spans(self, low: Tensor, high: Tensor) -> Tensor:
        """Max minus min of the channel of every column, (D,), from the columns' minima and maxima."""
        grouped = (self.outer, self.count, self.inner)
        span = high.reshape(grouped).amax((0, 2)) - low.reshape(grouped).amin((0, 2))
        return span[None, :, None].expand(grouped).reshape(-1)


@dataclass(frozen=True)
class Layout:
    """The ``D`` columns as channels, and the axes of a channel's map.

    Parameters
    ----------
    channels : Channels
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
    def of(
        cls,
        shape: Sequence[int],
        *,
        channels: int | None = None,
        dim: int | None = None,
    ) -> Layout:
        """Of features of this shape; parameters and errors as in `Channels.of`."""
        position = channel_position(shape, dim)
        axes = () if position is None else (*shape[1:position], *shape[position + 1 :])
        return cls(Channels.of(shape, channels=channels, dim=dim), axes)

    @property
    def places(self) -> int:
        """Entries of a channel's map, ``f``."""
        return self.channels.outer * self.channels.inner

    def split(self, matrix: Tensor) -> Tensor:
        """(B, D) as (B, C, f)."""
        outer, count, inner = (
            self.channels.outer,
            self.channels.count,
            self.channels.inner,
        )
        parts = matrix.view(-1, outer, count, inner)
        return parts.transpose(1, 2).reshape(-1, count, self.places)

    def join(self, parts: Tensor) -> Tensor:
        """(B, C, f) as (B, D)."""
        outer, count, inner = (
            self.channels.outer,
            self.channels.count,
            self.channels.inner,
        )
        return (
            parts.view(-1, count, outer, inner)
            .transpose(1, 2)
            .reshape(-1, outer * count * inner)
        )
