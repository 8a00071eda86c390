"""Column statistics in few passes over the matrix; on the matrix's device, results on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from math import frexp, isfinite

import numpy as np
import torch
from torch import Tensor

from flwr_splitfc.codec.format.floats import MAGNITUDE_LIMIT

_BLOCK_ENTRIES, _BLOCK_COLUMNS = 2**17, 2**12
_LARGEST_SCALE = 1e38
_LEAST_EXPONENT = -126


def check_magnitude(low: Tensor, high: Tensor) -> None:
    """Refuse NaN, infinities and values beyond ``MAGNITUDE_LIMIT``, given minima and maxima."""
    largest = max(-float(low.min()), float(high.max()))
    if not isfinite(largest):
        raise ValueError("the matrix holds NaN or inf; all values must be finite")
    if largest > MAGNITUDE_LIMIT:
        raise ValueError(
            f"the matrix holds a value of magnitude {largest:.3g}; at most 1e38 can be coded"
        )


def check_entries(matrix: Tensor) -> None:
    """Refuse a matrix with NaN, infinities or values beyond ``MAGNITUDE_LIMIT``."""
    matrix_extremes(matrix)


def matrix_extremes(matrix: Tensor) -> tuple[float, float]:
    """Minimum and maximum of all entries; (0, 0) if there are none.

    Raises
    ------
    ValueError
        If the matrix holds NaN, inf or a magnitude above 1e38.
    """
    if matrix.numel() == 0:
        return 0.0, 0.0
    low, high = torch.aminmax(matrix)
    check_magnitude(low, high)
    return float(low), float(high)


def half_scale(matrix: Tensor) -> float:
    """The power of two in units of which the largest magnitude is 2^14 to 2^15, where float16 is precise.

    >>> half_scale(torch.tensor([[1.0, -3.0]]))
    0.0001220703125
    """
    largest = float(matrix.abs().max()) if matrix.numel() else 0.0
    return 2.0 ** max(frexp(largest)[1] - 15, _LEAST_EXPONENT) if largest else 1.0


def to_half(scaled: Tensor, scale: float) -> Tensor:
    """Round to float16, but not beyond ``MAGNITUDE_LIMIT`` in units of `scale`."""
    limit = np.nextafter(np.float16(min(MAGNITUDE_LIMIT / scale, 65504)), np.float16(0))
    return scaled.half().clamp_(-float(limit), float(limit))


def column_extremes(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Minimum and maximum of each column, (K,), float64 on the CPU.

    Raises
    ------
    ValueError
        If the matrix holds NaN, inf or a magnitude above 1e38.

    Examples
    --------
    >>> low, high = column_extremes(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
    >>> low.tolist(), high.tolist()
    ([1.0, 5.0], [3.0, 5.0])
    """
    # the maxima find a wide matrix in the cache
    parts = matrix.split(_BLOCK_COLUMNS, 1)
    low, high = (
        torch.cat(ends).cpu()
        for ends in zip(*((part.amin(0), part.amax(0)) for part in parts), strict=True)
    )
    check_magnitude(low, high)
    return low.double(), high.double()


def column_means(matrix: Tensor) -> Tensor:
    """Mean of each column, (K,), float64 on the CPU.

    >>> column_means(torch.tensor([[1.0, 5.0], [3.0, 5.0]])).tolist()
    [2.0, 5.0]
    """
    offset = torch.zeros_like(matrix[0])
    for shifted, weights in _blocks(matrix):
        offset.addmv_(shifted.T, weights)
    return matrix[0].double().cpu() + offset.cpu()


def column_deviations(matrix: Tensor, spans: Tensor) -> Tensor:
    """Population standard deviation of each column in units of `spans`, (K,), float64 on the CPU.

    Parameters
    ----------
    spans : Tensor
        At least maximum minus minimum of each column, (K,): scaled first, no square
        overflows or vanishes.

    Examples
    --------
    >>> column_deviations(torch.tensor([[1.0, 5.0], [3.0, 5.0]]), torch.tensor([4.0, 0.0])).tolist()
    [0.25, 0.0]
    """
    scale = spans.reciprocal().clamp_(max=_LARGEST_SCALE).float().to(matrix.device)
    mean, squares = torch.zeros_like(scale), torch.zeros_like(scale)
    for shifted, weights in _blocks(matrix):
        mean.addmv_(shifted.mul_(scale).T, weights)
        squares.addmv_(shifted.square_().T, weights)
    return (squares.double() - mean.double().square()).clamp_(min=0.0).sqrt_().cpu()


def _blocks(matrix: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows less the first, in blocks that stay in the cache, with weights ``1/B``.

    Relative to the first row, a large common offset costs no accuracy.
    """
    rows, columns = matrix.shape
    block_rows = rows if matrix.is_cuda else max(1, _BLOCK_ENTRIES // columns)
    weights = matrix.new_full((rows,), 1 / rows)
    for block, block_weights in zip(
        matrix.split(block_rows), weights.split(block_rows), strict=True
    ):
        yield block - matrix[0], block_weights
