"""Column statistics in few passes over the matrix; on the matrix's device, results on the CPU."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

MAGNITUDE_LIMIT = 1e38
"""Largest absolute value that is coded: sums of two stay finite in float32."""

_BLOCK_ENTRIES = 2**17
_SAFE_SPANS = (1e-15, 1e15)
"""Spans whose squares neither overflow nor vanish in float32."""


class ColumnStatistics(NamedTuple):
    """Per column, float64 on the CPU, (K,) each."""

    low: Tensor
    high: Tensor
    mean: Tensor
    variance: Tensor


def check_magnitude(low: Tensor, high: Tensor) -> None:
    """Refuse NaN, infinities and values beyond ``MAGNITUDE_LIMIT``, given minima and maxima."""
    if not (bool(torch.isfinite(low).all()) and bool(torch.isfinite(high).all())):
        raise ValueError("the matrix holds NaN or inf; all values must be finite")
    largest = max(-float(low.min()), float(high.max()))
    if largest > MAGNITUDE_LIMIT:
        raise ValueError(f"the matrix holds a value of magnitude {largest:.3g}; at most 1e38 can be coded")


def check_entries(matrix: Tensor) -> None:
    """Refuse a matrix with NaN, infinities or values beyond ``MAGNITUDE_LIMIT``."""
    if matrix.numel():
        check_magnitude(*(extreme.cpu() for extreme in torch.aminmax(matrix)))


def column_statistics(matrix: Tensor) -> ColumnStatistics:
    """Minimum, maximum, mean and population variance of each column of a float32 (B, K) matrix.

    Sums run relative to the first row: a large common offset costs no accuracy.

    Raises
    ------
    ValueError
        If the matrix holds NaN, inf or a magnitude above 1e38.

    Examples
    --------
    >>> stats = column_statistics(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
    >>> stats.mean.tolist(), stats.variance.tolist()
    ([2.0, 5.0], [1.0, 0.0])
    """
    low, high = (extreme.double().cpu() for extreme in (matrix.amin(0), matrix.amax(0)))
    check_magnitude(low, high)
    total, squares = _moments(matrix, _accumulator(high - low))
    rows = matrix.shape[0]
    offset = total / rows
    mean = (matrix[0].double().cpu() + offset).clamp(low, high)
    return ColumnStatistics(low, high, mean, (squares / rows - offset.square()).clamp_(min=0.0))


def _accumulator(spans: Tensor) -> torch.dtype:
    varying = spans[spans > 0]
    if varying.numel() == 0:
        return torch.float32
    safe = _SAFE_SPANS[0] < float(varying.min()) and float(varying.max()) < _SAFE_SPANS[1]
    return torch.float32 if safe else torch.float64


def _moments(matrix: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Column sums and sums of squares of ``matrix - matrix[0]``, block by block to stay in the cache."""
    width = matrix.shape[1]
    pivot = matrix[0].to(dtype)
    total, squares = pivot.new_zeros(width), pivot.new_zeros(width)
    block_rows = matrix.shape[0] if matrix.is_cuda else max(1, _BLOCK_ENTRIES // width)
    for block in matrix.split(block_rows):
        shifted = block.to(dtype) - pivot
        ones = pivot.new_ones(len(shifted))
        total.addmv_(shifted.T, ones)
        squares.addmv_(shifted.square_().T, ones)
    return total.double().cpu(), squares.double().cpu()
