"""Adaptive feature-wise dropout (SplitFC, Sec. IV)."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, isfinite, sqrt

import torch
from torch import Tensor

from flwr_splitfc.codec.format.column_sets import (
    pack_selection,
    selection_bytes,
    unpack_selection,
)
from flwr_splitfc.codec.link import Link
from flwr_splitfc.codec.selectors.selection import Selection
from flwr_splitfc.codec.selectors.selector import Selector
from flwr_splitfc.codec.statistics import column_deviations, column_extremes


def keep_probabilities(dispersion: Tensor, reduction: float) -> Tensor:
    """Keep probability of every column (SplitFC, Sec. IV).

    ``(D/R) (sigma_i + c) / sum_j (sigma_j + c)`` with the smallest bias ``c`` that
    keeps every probability at most 1. They add up to ``D/R``.

    Parameters
    ----------
    dispersion : Tensor
        ``sigma``, the standard deviation of each channel-normalised column, float64
        (D,).
    reduction : float
        ``R``, at least 1.

    Examples
    --------
    >>> keep_probabilities(torch.tensor([0.0, 0.1, 0.3], dtype=torch.float64), reduction=1.5)
    tensor([0.4000, 0.6000, 1.0000], dtype=torch.float64)
    """
    if reduction == 1.0:
        return torch.ones_like(dispersion)
    kept, largest = len(dispersion) / reduction, float(dispersion.max())
    if largest == 0.0:
        return torch.full_like(dispersion, 1.0 / reduction)
    relative = dispersion / largest
    total = float(relative.sum())
    bias = max(0.0, (kept - total) / (len(dispersion) - kept))
    return (kept * (relative + bias) / (total + len(dispersion) * bias)).clamp_(max=1.0)


@dataclass(frozen=True)
class FeatureDropout(Selector):
    """Keeps ``D/R`` columns in expectation, the widely spread ones more often, scaled to stay unbiased.

    Parameters
    ----------
    reduction : float
        ``R``, the dimensionality reduction ratio, at least 1; 1 keeps every column.
    """

    reduction: float = 16.0

    def __post_init__(self) -> None:
        if not (isfinite(self.reduction) and self.reduction >= 1):
            raise ValueError(
                f"reduction must be a finite number of at least 1, got {self.reduction}"
            )

    def select(self, matrix: Tensor, selection: Selection) -> tuple[Tensor, Link]:
        rows, width = matrix.shape
        if self.reduction == 1.0 or not selection.training:
            return matrix, Link(rows, width, device=matrix.device)
        spans = selection.channels.spans(*column_extremes(matrix))
        keep = keep_probabilities(column_deviations(matrix, spans), self.reduction)
        drawn = (
            torch.rand(width, generator=selection.generator, dtype=torch.float64) < keep
        )
        columns = drawn.nonzero().flatten()
        scale = keep[columns].reciprocal().float().to(matrix.device)
        everything = len(columns) == width
        link = Link(
            rows,
            width,
            None if everything else columns.to(matrix.device),
            scale,
            matrix.device,
        )
        return link.restrict(matrix) * scale, link

    def pack(self, link: Link) -> bytes:
        columns = None if link.columns is None else link.columns.cpu().numpy()
        return pack_selection(columns, link.width)

    def unpack(
        self, data: memoryview, rows: int, columns: int
    ) -> tuple[Link, memoryview]:
        kept, rest = unpack_selection(data, columns)
        return Link(
            rows, columns, None if kept is None else torch.from_numpy(kept)
        ), rest

    def most_columns(self, columns: int, *, training: bool = True) -> int:
        """``D/R`` and six standard deviations: exceeded with a probability below 1e-9."""
        if not training:
            return columns
        mean = columns / self.reduction
        return min(columns, ceil(mean + 6 * sqrt(mean)) + 6)

    def most_bytes(self, rows: int, kept: int, columns: int) -> int:
        fewest = columns if self.reduction == 1.0 else 0
        return selection_bytes(fewest, kept, columns)
