"""Where the receiver puts the coefficients of each magnitude.

Coefficients that were quantised to m steps lie around m, but not evenly. Their mean is
``m + c / 16`` steps with a centroid c for m = 1, one for 2 and one for all larger ones,
whole numbers of -6 to 9 that the receiver is told::

    c_m = round(16 * mean of (|x| / step - m))

The decoder computes in units of a 256th of a step, where this is ``256 m + 16 c``. See
docs/splitfc-rd.md, "The method", 6, and docs/wire-format.md, section 14, "Values".
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from flwr_splitfc.codec.arrays import Doubles, Floats, Ints
from flwr_splitfc.codec.format.bits import Run, read_integers, symbol_runs
from flwr_splitfc.codec.format.symbols import SymbolReader
from flwr_splitfc.codec.quantisers.transform.dead_zone import nonzero_places
from flwr_splitfc.codec.quantisers.transform.sampling import spread_rows

UNITS_PER_STEP = 256
"""What the decoder computes in; its transforms round to whole units."""

_GROUPS = 3
"""Magnitudes of 1, of 2, and larger ones."""

_CENTROIDS_PER_STEP = 16

_CENTROID_UNITS = UNITS_PER_STEP // _CENTROIDS_PER_STEP

_LEAST_CENTROID = -6
_MOST_CENTROID = 9
_CENTROIDS = _MOST_CENTROID - _LEAST_CENTROID + 1


def fit_centroids(values: Tensor, magnitudes: Tensor, step: float) -> Ints:
    """Measure the centroids of (B, C, f) values on some of the rows.

    Parameters
    ----------
    values : Tensor of shape (B, C, f)
    magnitudes : Tensor of shape (B, C, f)
        The values in whole steps.
    step : float

    Returns
    -------
    ndarray of shape (3,)
        -6 to 9; 0 for a group without coefficients.
    """
    some_magnitudes = spread_rows(magnitudes)
    some_values = spread_rows(values).numpy().ravel()
    nonzero = nonzero_places(some_magnitudes)
    steps = some_magnitudes.numpy().ravel()[nonzero]
    # |x| / step - m
    exact_steps = np.abs(some_values[nonzero]) / step
    means = _group_means(exact_steps - steps, _group(steps.astype(np.int64)))
    centroids = np.round(_CENTROIDS_PER_STEP * means)
    in_range = centroids.clip(_LEAST_CENTROID, _MOST_CENTROID)
    return in_range.astype(np.int64)


def _group_means(values: Floats, groups: Ints) -> Doubles:
    """Return the mean of each group from 1 on, 0 for an empty one."""
    lengths = _GROUPS + 1
    sums = np.bincount(groups, values, lengths)
    counts = np.bincount(groups, minlength=lengths)
    means: Doubles = sums / np.maximum(counts, 1)
    return means[1:]


def centroid_runs(centroids: Ints) -> Iterator[Run]:
    """Yield the three centroids."""
    yield from symbol_runs(centroids - _LEAST_CENTROID, _CENTROIDS)


def read_centroids(reader: SymbolReader) -> Ints:
    """Read the three centroids."""
    symbols = read_integers(reader, _GROUPS, _CENTROIDS)
    return symbols + _LEAST_CENTROID


def reconstructed(values: Ints, centroids: Ints) -> Ints:
    """Return values in whole steps at their centroids, in 256ths of a step.

    >>> reconstructed(np.array([-1, 2, 7]), centroids=np.array([4, 0, -1])).tolist()
    [-320, 512, 1776]
    """
    magnitudes = np.abs(values)
    # none for magnitudes of 0
    by_group = np.append(0, centroids)
    beyond = by_group[_group(magnitudes)]
    # 256 m + 16 c
    units = UNITS_PER_STEP * magnitudes + _CENTROID_UNITS * beyond
    with_signs: Ints = np.sign(values) * units
    return with_signs


def _group(magnitudes: Ints) -> Ints:
    return np.minimum(magnitudes, _GROUPS)
