"""Quality in decibels: how precise decoded features and gradients are.

A batch at quality q is quantised with the step

    step = s sqrt(12) 10^(-q / 20)

where s is the root mean square of what may be lost: of the features' deviations from
their columns' means, of the gradient's entries. Entries that are far above a step are
then off by ``step^2 / 12`` on average, so that their relative squared error is
``10^(-q / 10)``. Entries below a step cost next to nothing, and what is lost with them
is of the same size.

So one number buys the same at every cut: a bit that removes more error than this price
is spent, and others are not. How many bits that takes follows from the batch.

How much is needed follows from the cut: errors of the entries that decide one label
average out, so that the more there are of them, the coarser they may be. The automatic
quality has

    step = s n^(1/3) / 25

for n entries of features to a label. See docs/quality.md, where both come from.
"""

from __future__ import annotations

from math import isfinite, log10, sqrt

import torch
from torch import Tensor

from flwr_splitfc.codec.statistics import column_means

AUTOMATIC = 0.0
"""The quality that stands for `automatic_quality`."""

GRADIENT_OFFSET = 6.0
"""By so many decibels gradients are coarser: their errors do less harm."""

LEAST_QUALITY, MOST_QUALITY = 1.0, 60.0
"""From where the means alone do as well, to where float32 does not tell more."""

_LEAST_AUTOMATIC, _MOST_AUTOMATIC = 12.5, 32.5
"""What was tried: 64 to 4,096 entries a label, and a little beyond."""

NO_CEILING = 32.0
"""Bits per entry: float32's, which no entries reach. As a ceiling it is none."""


def check_quality(quality: float) -> None:
    """Refuse what is no quality.

    Raises
    ------
    ValueError
    """
    if quality == AUTOMATIC:
        return
    if not (isfinite(quality) and LEAST_QUALITY <= quality <= MOST_QUALITY):
        raise ValueError(
            f"quality must be 0 for the automatic one or "
            f"{LEAST_QUALITY:g} to {MOST_QUALITY:g} dB, got {quality}"
        )


def labels_per_row(entries: int, rows: int) -> float:
    """Return how many labels a sample has, at least one.

    Parameters
    ----------
    entries : int
        Of the labels of a mini-batch.
    rows : int
        Its samples.

    Examples
    --------
    >>> labels_per_row(32 * 28 * 28, rows=32)
    784.0
    """
    return max(1.0, entries / max(1, rows))


def automatic_quality(entries_per_label: float) -> float:
    """Return the quality of features for a number of entries that decide a label.

    >>> [round(automatic_quality(n), 1) for n in (64, 1152, 8192)]
    [26.7, 18.3, 12.7]
    """
    relative_step = entries_per_label ** (1 / 3) / 25
    quality = 20 * log10(sqrt(12) / relative_step)
    return min(max(quality, _LEAST_AUTOMATIC), _MOST_AUTOMATIC)


def quality_step(scale: float, quality: float) -> float:
    """Return the step for entries of a root mean square.

    >>> round(quality_step(1.0, quality=20), 3)
    0.346
    """
    return scale * sqrt(12) * 10 ** (-quality / 20)


def feature_scale(matrix: Tensor) -> float:
    """Return the root mean square of (B, D) features about their columns' means.

    Where no column varies, as in a batch of one sample, about zero.
    """
    means = column_means(matrix).float()
    deviations = matrix - means.to(matrix.device)
    return root_mean_square(deviations) or root_mean_square(matrix)


def root_mean_square(entries: Tensor) -> float:
    """Return the root mean square of all entries.

    It is taken in float64: squares of float32 overflow and vanish.
    """
    if entries.numel() == 0:
        return 0.0
    norm = torch.linalg.vector_norm(entries, dtype=torch.float64)
    return float(norm) / sqrt(entries.numel())


def feature_error(exact: Tensor, seen: Tensor) -> float:
    """Return the squared error of decoded features relative to how features vary.

    With 1.0 the receiver might as well know nothing but each column's mean.

    Parameters
    ----------
    exact, seen : Tensor of shape (B, D)
        Before encoding and after decoding.

    Examples
    --------
    >>> exact = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    >>> feature_error(exact, torch.tensor([[2.0, 5.0], [2.0, 5.0]]))
    1.0
    """
    return _relative(exact, seen, feature_scale(exact))


def lost_columns(exact: Tensor, seen: Tensor) -> float:
    """Return the share of the columns that vary of which more than half is lost.

    The squared error of each is relative to how this column varies, where
    `feature_error` is relative to how all do. If none varies, 0.

    Parameters
    ----------
    exact, seen : Tensor of shape (B, D)
        Before encoding and after decoding.

    Examples
    --------
    >>> exact = torch.tensor([[-99.0, 1.0, 5.0], [99.0, 3.0, 5.0]])
    >>> lost_columns(exact, torch.tensor([[-99.0, 2.0, 5.0], [99.0, 2.0, 5.0]]))
    0.5
    """
    varies = exact.amax(0) > exact.amin(0)
    if not varies.any():
        return 0.0
    means = column_means(exact).float()
    own = _column_norms(exact - means.to(exact.device))
    lost = _column_norms(seen - exact)
    is_lost = lost.square() > own.square() / 2
    return float(is_lost[varies].double().mean())


def _column_norms(matrix: Tensor) -> Tensor:
    """Return the norm of each column, in float64: squares of float32 overflow."""
    norms: Tensor = torch.linalg.vector_norm(matrix, dim=0, dtype=torch.float64)
    return norms


def gradient_error(exact: Tensor, seen: Tensor) -> float:
    """Return the squared error of a decoded gradient relative to its size.

    >>> error = gradient_error(torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 0.0]]))
    >>> round(error, 4)
    0.64
    """
    return _relative(exact, seen, root_mean_square(exact))


def _relative(exact: Tensor, seen: Tensor, scale: float) -> float:
    error = root_mean_square(seen - exact)
    if error == 0:
        return 0.0
    # nothing was there to be sent, and something came
    return (error / scale) ** 2 if scale else float("inf")
