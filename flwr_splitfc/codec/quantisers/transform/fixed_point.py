"""Fixed-point numbers of the decoder: integers, held in float64.

Every decoder must make the same floats. So the decoder computes in integers, each in
units of a power of two. float64 holds them, because matrix products are fast there. All
sums stay below 2^53, where float64 is exact: neither the order of a sum nor the machine
matters (docs/wire-format.md, section 14, "Values").
"""

from __future__ import annotations

from torch import Tensor


def divide_rounded(values: Tensor, bits: int) -> Tensor:
    """Divide integers by ``2^bits`` in place, and round to integers, halves up.

    >>> import torch
    >>> divide_rounded(torch.tensor([5.0, 6.0, -6.0]), bits=2)
    tensor([ 1.,  2., -1.])
    """
    values.mul_(2.0**-bits)
    # floor(v + 1/2) rounds to the nearest integer, and halves up
    values.add_(0.5)
    return values.floor_()
