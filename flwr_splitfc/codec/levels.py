"""Channels of very different scales, brought to one scale for coding.

A quality has one step for the whole matrix, which the largest channels set. What varies
by less than a step is lost then. That costs nothing where the server half takes
features as they are, and much where it normalises them: small channels weigh as much as
large ones there, and its gradient says so. With w_c for the mean square of the gradient
by a channel's entries, and v_c for that of their deviations from their columns' means,
the receiver feels an error of one step as if features varied by

    sqrt(sum w_c v_c / sum w_c)

only. Where that is less than half of the features' root mean square, channels are
levelled: each is multiplied by a power of two that makes it vary about as much as the
largest does, and the receiver divides by it again.

The gradient by levelled features is levelled, too, by powers of two that make its own
channels about as large as its largest. Behind a normalisation it is the larger the
smaller the features are, and otherwise it is not, so the features do not tell how.

Features (B, C, T) look like (B, T, C), and (B, H, W, C) like (B, C, H, W). Channels are
taken for those of the other dimension where these differ more.

Before a gradient has told, channels are levelled only where most would surely be lost:
that costs bits, and is right for either server half.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import numpy as np
import torch
from torch import Tensor

from flwr_splitfc.codec.arrays import Ints, Mask
from flwr_splitfc.codec.channels import Layout
from flwr_splitfc.codec.format.exponents import MOST_EXPONENT
from flwr_splitfc.codec.statistics import column_means

_BATCH_NORM_EPS = 1e-5
"""What torch's BatchNorm adds to a variance."""

_ROUNDING = 1e-6
"""Of the largest entry: what deviates by less does not vary."""

_CLEARLY = 1.0
"""In exponents, on average: that channels of another dimension differ more."""

_LEAST_FELT = 0.5
"""Of the root mean square; networks without a great difference have 0.8 to 1.1."""

SURELY = 0.125
"""Of a step: what deviates by less is surely lost."""

PROBABLY = 0.5
"""Of a step: what deviates by less is lost for the most part."""

_MOST_VANISHING = 0.5
"""Of the channels, where no gradient has told whether they matter."""


def most_different(matrix: Tensor, layouts: Sequence[Layout]) -> tuple[int, Ints]:
    """Return whose channels differ most, and what levels them.

    Parameters
    ----------
    matrix : Tensor of shape (B, D)
    layouts : sequence of Layout
        At least one; the first, if no other's channels clearly differ more.

    Returns
    -------
    tuple of int and ndarray of shape (C,)
        The place among the layouts, and by channel the exponents of the powers of two
        that level features. No entry becomes larger than the largest of the matrix.

    >>> features = torch.tensor([[800.0, 1.0, 3.0], [0.0, 2.0, 3.0]])
    >>> most_different(features, [Layout.of(features.shape)])
    (0, array([0, 8, 8]))
    """
    found = []
    means = []
    for layout in layouts:
        exponents, varies = _exponents(matrix, layout)
        # what does not vary is often an edge, or filled up, and tells of no scale
        total = exponents.sum(where=varies)
        varying = max(varies.sum(), 1)
        found.append(exponents)
        means.append(total / varying)
    means[0] += _CLEARLY
    place = means.index(max(means))
    return place, found[place]


def _exponents(matrix: Tensor, layout: Layout) -> tuple[Ints, Mask]:
    """Return by channel the exponent that levels it, and whether it varies."""
    deviations = channel_deviations(matrix, layout)
    largest = layout.split(matrix).abs().amax((0, 2))
    entries = largest.double().cpu()  # (C,)
    varies = deviations > _ROUNDING * entries
    # by what does not vary, a BatchNorm's gradient is 1 / sqrt(eps) times as large
    of_edge = sqrt(_BATCH_NORM_EPS)
    deviations[~varies] = min(of_edge, float(deviations.max()))
    return _levelling(deviations, entries), varies.numpy()


def gradient_exponents(gradient: Tensor, layout: Layout) -> Ints:
    """Return by channel the exponent of the power of two that levels a gradient.

    Parameters
    ----------
    gradient : Tensor of shape (B, D)
    layout : Layout
        Of the features.

    Returns
    -------
    ndarray of shape (C,)
        No entry becomes larger than the largest of the gradient.

    >>> gradient = torch.tensor([[8.0, 0.1], [-8.0, 0.0]])
    >>> gradient_exponents(gradient, Layout.of(gradient.shape))
    array([0, 6])
    """
    sizes = _mean_squares(gradient, layout).sqrt()
    largest = layout.split(gradient).abs().amax((0, 2))
    return _levelling(sizes, largest.double().cpu())


def _levelling(sizes: Tensor, largest: Tensor) -> Ints:
    """Return the exponents that bring channels to one size.

    Parameters
    ----------
    sizes, largest : Tensor of shape (C,)
        By channel, and its largest magnitude, which stays within the matrix's.
    """
    smaller = torch.log2(sizes.max() / sizes).round()
    room = torch.log2(largest.max() / largest).floor()
    wanted = torch.minimum(smaller, room).nan_to_num(0.0)
    exponents = wanted.clamp(0, MOST_EXPONENT).numpy()
    return exponents.astype(np.int64)


def vanish_below(least: float, matrix: Tensor, layout: Layout) -> bool:
    """Tell whether most of the channels that vary deviate by less."""
    deviations = channel_deviations(matrix, layout)
    varying = deviations[deviations > 0]
    if len(varying) == 0:
        return False
    vanishing = (varying < least).double().mean()
    return float(vanishing) > _MOST_VANISHING


def are_felt_alike(features: Tensor, gradient: Tensor, layout: Layout) -> bool | None:
    """Tell by the gradient whether small channels matter as much as large ones.

    Parameters
    ----------
    features, gradient : Tensor of shape (B, D)
        Of one batch.
    layout : Layout

    Returns
    -------
    bool or None
        None if the gradient or the features tell nothing, as where one is all zero.
    """
    variances = channel_deviations(features, layout).square()
    weights = _mean_squares(gradient, layout)
    if not variances.any():
        return None
    weighted = (weights * variances).sum()
    felt = float(weighted / weights.sum())
    relative = felt / float(variances.mean())
    if not np.isfinite(relative):
        return None
    return sqrt(relative) < _LEAST_FELT


def channel_deviations(matrix: Tensor, layout: Layout) -> Tensor:
    """Return what each channel's entries deviate by from their columns' means.

    Returns
    -------
    Tensor of shape (C,)
        Root mean squares, float64 on the CPU.
    """
    means = column_means(matrix).float()
    deviations = matrix - means.to(matrix.device)  # (B, D)
    return _mean_squares(deviations, layout).sqrt()


def _mean_squares(matrix: Tensor, layout: Layout) -> Tensor:
    """Return the mean square of each channel's entries, float64 on the CPU."""
    # in float64: squares of float32 overflow and vanish
    norms: Tensor = torch.linalg.vector_norm(matrix, dim=0, dtype=torch.float64)
    by_column = norms.square().cpu() / len(matrix)
    channels = layout.channels
    by_channel = by_column.view(channels.outer, channels.count, channels.inner)
    return by_channel.mean((0, 2))


def gains_of(exponents: Ints, layout: Layout) -> Tensor:
    """Return what each column is multiplied by, float32 (D,) on the CPU."""
    channels = layout.channels
    powers = np.ldexp(np.float32(1), exponents.astype(np.int32))
    by_channel = torch.from_numpy(powers).view(1, -1, 1)
    shape = (channels.outer, channels.count, channels.inner)
    return by_channel.expand(shape).flatten()
