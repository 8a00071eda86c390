"""Classes of magnitudes, of which there are two an octave, and places in them.

==================  ==  ==  ==  ==  ====  ====  =====  ======  ======  ===
class               0   1   2   3   4     5     6      7       8       ...
magnitudes          0   1   2   3   4, 5  6, 7  8-11   12-15   16-23   ...
bits of a place     0   0   0   0   1     1     2      2       3       ...
==================  ==  ==  ==  ==  ====  ====  =====  ======  ======  ===
"""

from __future__ import annotations

import numpy as np

from flwr_splitfc.codec.arrays import Ints

MOST_MAGNITUDE: int = 2**31 - 1

MOST_CLASS = 61
"""That of the largest magnitude."""

_CLASSES = np.arange(MOST_CLASS + 1)

PLACE_WIDTHS: Ints = np.maximum(_CLASSES // 2 - 1, 0)
"""Of each class."""

LEAST_MAGNITUDES: Ints = np.where(
    _CLASSES < 4, _CLASSES, (2 + _CLASSES % 2) << PLACE_WIDTHS
)
"""Of each class."""


def classes_of(magnitudes: Ints) -> Ints:
    """Return the class of each magnitude.

    >>> classes_of(np.array([0, 1, 2, 3, 4, 5, 6, 8, 12, 2**31 - 1])).tolist()
    [0, 1, 2, 3, 4, 4, 5, 6, 7, 61]
    """
    # Exponent and first bit of the mantissa, as they stand in a float64: two an octave.
    doubles = magnitudes.astype(np.float64)
    half_octaves = doubles.view(np.int64) >> 51
    half_octaves_of_one = 2 * 1023
    from_two = half_octaves - half_octaves_of_one
    below_two = np.minimum(magnitudes, 1)
    classes: Ints = np.maximum(from_two, below_two)
    return classes
