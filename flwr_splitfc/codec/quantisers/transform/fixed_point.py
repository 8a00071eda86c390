"""Fixed-point numbers of the decoder: integers, held in float64.

Every decoder must make the same floats. So the decoder computes in integers, each in
units of a power of two. float64 holds them, because matrix products are fast there. All
sums stay below 2^53, where float64 is exact: neither the order of a sum nor the machine
matters (docs/wire-format.md, section 14, "Values"). A unit is a power of two, so it may
as well be divided by before a product is taken, in its smaller factor.
"""

from __future__ import annotations

import torch
from torch import Tensor


def whole(values: Tensor) -> Tensor:
    """Round to integers, halves up, in place.

    >>> whole(torch.tensor([1.25, 1.5, -1.5]))
    tensor([ 1.,  2., -1.])
    """
    # floor(v + 1/2) rounds to the nearest integer, and halves up
    values.add_(0.5)
    return values.floor_()


def channel_means(entries: Tensor) -> Tensor:
    """Return each channel's mean, rounded to an integer, halves up.

    Parameters
    ----------
    entries : Tensor of shape (B, C, f)

    Returns
    -------
    Tensor of shape (1, C, 1)
    """
    rows, _, places = entries.shape
    count = rows * places
    # a sum of many may be beyond what float64 holds exactly
    sums = entries.long().sum((0, 2), keepdim=True)
    means = torch.div(2 * sums + count, 2 * count, rounding_mode="floor")
    return means.double()
