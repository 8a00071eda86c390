"""The reflections that gather the mean of the rows, each column's by itself.

An offset is what all n rows have in common. A Householder reflection (see `reflectors`)
puts it into the first of them if its vector is::

    w = (1 + sqrt(n), 1, 1, ..., 1)

In integers its ratio is off by 3 % at most, and the other rows keep as much of the
offset, all the same. So the next reflection gathers that, and after three next to
nothing is left.
"""

from __future__ import annotations

from fractions import Fraction
from math import sqrt

import numpy as np

from flwr_splitfc.codec.arrays import Ints
from flwr_splitfc.codec.channels import LARGEST_KLT
from flwr_splitfc.codec.quantisers.transform.reflectors import (
    REFLECTOR_STEPS,
    no_reflectors,
)

_MOST_REFLECTIONS = 3


def mean_reflectors(rows: int) -> Ints:
    """Return the vectors as columns; none for a single row, or for too many.

    >>> mean_reflectors(9).T
    array([[ 4,  1,  1,  1,  1,  1,  1,  1,  1],
           [ 0, 23,  6,  6,  6,  6,  6,  6,  6],
           [ 0,  0, 11,  3,  3,  3,  3,  3,  3]])
    """
    if rows > LARGEST_KLT:
        return no_reflectors(rows)
    count = min(_MOST_REFLECTIONS, rows - 1)
    vectors = np.zeros((rows, count), np.int64)
    for k in range(count):
        ratio = 1 + sqrt(rows - k)
        nearest = Fraction(1 / ratio).limit_denominator(REFLECTOR_STEPS)
        vectors[k, k] = nearest.denominator
        vectors[k + 1 :, k] = nearest.numerator
    return vectors
