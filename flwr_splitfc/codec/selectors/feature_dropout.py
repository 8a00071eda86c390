"""Adaptive feature-wise dropout (SplitFC, 2307.10805, Sec. IV).

With ``p_i`` the probability that column i is dropped, it is kept with

    1 - p_i = (D / R) (sigma_i + c) / sum_j (sigma_j + c)                       (2)

where ``sigma_i`` is its standard deviation in units of its channel's span (1), and the
bias c is the smallest that keeps every probability at most 1:

    c = max(0, ((D / R) max_j sigma_j - sum_j sigma_j) / (D - D / R))           (3)

A kept column is multiplied by ``1 / (1 - p_i)``, so that the features stay unbiased
(4). The device multiplies the column's gradient by the same factor, by the chain rule
(5): `Link.expand` does. The numbers are those of the equations in docs/splitfc.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, isfinite, sqrt

import numpy as np
import torch
from torch import Tensor

from flwr_splitfc.codec.arrays import Doubles, Floats, Ints, from_ints, to_ints
from flwr_splitfc.codec.compiled import compiled
from flwr_splitfc.codec.format.column_sets import (
    pack_selection,
    selection_bytes,
    unpack_selection,
)
from flwr_splitfc.codec.format.floats import MAGNITUDE_LIMIT
from flwr_splitfc.codec.link import Link
from flwr_splitfc.codec.selectors.selection import Selection
from flwr_splitfc.codec.selectors.selector import Selector
from flwr_splitfc.codec.statistics import column_deviations, column_extremes

_USUAL_REDUCTION = 16.0


def keep_probabilities(dispersion: Tensor, reduction: float) -> Tensor:
    """Return the keep probability of every column; they add up to ``D/R``.

    Parameters
    ----------
    dispersion : Tensor
        ``sigma``, the standard deviation of each channel-normalised column, float64
        (D,).
    reduction : float
        ``R``, at least 1.

    Examples
    --------
    >>> dispersion = torch.tensor([0.0, 0.1, 0.3], dtype=torch.float64)
    >>> keep_probabilities(dispersion, reduction=1.5)
    tensor([0.4000, 0.6000, 1.0000], dtype=torch.float64)
    """
    return torch.from_numpy(_keep_probabilities(dispersion.numpy(), reduction))


@compiled
def _keep_probabilities(dispersion: Doubles, reduction: float) -> Doubles:
    columns = len(dispersion)
    largest = 0.0
    for own in dispersion:
        largest = max(largest, own)
    probabilities = np.empty(columns)
    if reduction == 1.0 or largest == 0.0:
        probabilities[:] = 1.0 / reduction
        return probabilities
    kept = columns / reduction
    # In units of the largest deviation nothing overflows or vanishes.
    total = 0.0
    for own in dispersion:
        total += own / largest
    # (3), where the largest is 1
    least_bias = (kept - total) / (columns - kept)
    bias = max(0.0, least_bias)
    # (2)
    biased_total = total + columns * bias
    for column in range(columns):
        probability = kept * (dispersion[column] / largest + bias) / biased_total
        # Rounding may leave a little more than 1.
        probabilities[column] = min(probability, 1.0)
    return probabilities


@compiled
def _draw(
    dispersion: Doubles, uniform: Doubles, reduction: float
) -> tuple[Ints, Floats]:
    """Return the columns that are kept, and their scale."""
    keep = _keep_probabilities(dispersion, reduction)
    columns = np.empty(len(keep), np.int64)
    scale = np.empty(len(keep), np.float32)
    kept = 0
    for column in range(len(keep)):
        if uniform[column] < keep[column]:
            columns[kept] = column
            # (4)
            scale[kept] = 1.0 / keep[column]
            kept += 1
    return columns[:kept], scale[:kept]


@dataclass(frozen=True)
class FeatureDropout(Selector):
    """Keeps ``D/R`` columns in expectation, those that vary widely more often.

    Kept columns are scaled, so that the features stay unbiased.

    Parameters
    ----------
    reduction : float, optional
        ``R``, the dimensionality reduction ratio, at least 1; 1 keeps every column. By
        default it follows from the budget, see `within`; without one it is 16.
    """

    reduction: float | None = None

    def __post_init__(self) -> None:
        if self.reduction is None:
            return
        if not (isfinite(self.reduction) and self.reduction >= 1):
            raise ValueError(
                f"reduction must be a finite number of at least 1, got {self.reduction}"
            )

    def within(self, bits: float, entry_bits: float | None) -> Selector:
        """Return the selector that keeps as many columns as get `entry_bits` each."""
        if self.reduction is not None or entry_bits is None:
            return self
        return FeatureDropout(max(1.0, entry_bits / bits))

    @property
    def rescales(self) -> bool:
        return self._ratio > 1

    @property
    def _ratio(self) -> float:
        return _USUAL_REDUCTION if self.reduction is None else self.reduction

    def select(self, matrix: Tensor, selection: Selection) -> tuple[Tensor, Link]:
        rows, width = matrix.shape
        if self._ratio == 1.0 or not selection.training:
            return matrix, Link(rows, width, device=matrix.device)
        uniform = torch.rand(
            width, generator=selection.generator, dtype=torch.float64, device="cpu"
        )
        low, high = column_extremes(matrix)
        # (1)
        spans = selection.channels.spans(low, high)
        dispersion = column_deviations(matrix, spans).numpy()
        drawn, scales = _draw(dispersion, uniform.numpy(), self._ratio)
        largest = torch.maximum(-low, high).numpy()  # (D,)
        _check_scaled(largest[drawn] * scales)
        device = matrix.device
        scale = torch.from_numpy(scales).to(device)
        columns = None
        # A link has no columns where all are kept.
        if len(drawn) < width:
            columns = torch.from_numpy(drawn).to(device)
        link = Link(rows, width, columns=columns, scale=scale, device=device)
        kept = link.restrict(matrix)
        return kept * scale, link

    def pack(self, link: Link) -> bytes:
        columns = to_ints(link.columns)
        return pack_selection(columns, link.width)

    def unpack(
        self, data: memoryview, rows: int, columns: int
    ) -> tuple[Link, memoryview]:
        kept, rest = unpack_selection(data, columns)
        link = Link(rows, columns, from_ints(kept))
        return link, rest

    def most_columns(self, columns: int, *, training: bool = True) -> int:
        """Return ``D/R`` and six standard deviations.

        More are drawn with a probability below 1e-9.
        """
        if not training:
            return columns
        mean = columns / self._ratio
        # The variance, sum p (1 - p), is below the mean; a few more for small means.
        deviation = sqrt(mean)
        likely = ceil(mean + 6 * deviation) + 6
        return min(columns, likely)

    def most_bytes(self, rows: int, kept: int, columns: int) -> int:
        fewest = columns if self._ratio == 1.0 else 0
        return selection_bytes(fewest, kept, columns)


def _check_scaled(magnitudes: Doubles) -> None:
    """Refuse columns of which the scale makes magnitudes that are not coded."""
    largest = magnitudes.max(initial=0)
    if largest > MAGNITUDE_LIMIT:
        raise ValueError(
            f"features reach {largest:.3g} after the scale of kept columns, 1/(1-p); "
            "at most 1e38 can be coded"
        )
