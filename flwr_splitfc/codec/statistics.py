"""Extremes, means and deviations of a matrix's columns, in few passes over it.

They are computed on the matrix's device and come back on the CPU. Over the B rows x_b,

    mean       x_1 + sum (x_b - x_1) / B
    deviation  sqrt(sum y_b^2 / B - (sum y_b / B)^2)  with  y_b = (x_b - x_1) / span

since a large offset that all rows share costs no accuracy relative to the first row.
Also here: the bounds on what is coded, and float16 in units of a power of two.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import frexp, isfinite

import numpy as np
import torch
from torch import Tensor

from flwr_splitfc.codec.arrays import Doubles, Floats
from flwr_splitfc.codec.compiled import compiled
from flwr_splitfc.codec.format.floats import MAGNITUDE_LIMIT, largest_magnitude

# Blocks of rows, and of columns, that stay in the cache.
_BLOCK_ENTRIES = 2**17
_BLOCK_COLUMNS = 2**12

# Below float32's greatest: what is scaled by it stays finite.
_LARGEST_SCALE = 1e38

# The greatest float16.
HALF_LIMIT = 65504

# Half precision is best where magnitudes reach 2^14 to 2^15.
_HALF_EXPONENT = 15

# The least power of two that float32 holds in full precision.
_LEAST_EXPONENT = -126


def check_entries(matrix: Tensor) -> None:
    """Refuse a matrix with NaN, infinities or magnitudes above 1e38.

    Raises
    ------
    ValueError
        If there is one.
    """
    matrix_extremes(matrix)


def matrix_extremes(matrix: Tensor) -> tuple[float, float]:
    """Return minimum and maximum of all entries; (0, 0) if there are none.

    Raises
    ------
    ValueError
        If the matrix holds NaN, inf or a magnitude above 1e38.
    """
    if matrix.numel() == 0:
        return 0.0, 0.0
    extremes = torch.aminmax(matrix)
    low, high = float(extremes.min), float(extremes.max)
    # NaN is both, or none
    _check_magnitude(max(-low, high))
    return low, high


def _check_magnitude(largest: float) -> None:
    if not isfinite(largest):
        raise ValueError("the matrix holds NaN or inf; all values must be finite")
    if largest > MAGNITUDE_LIMIT:
        raise ValueError(
            f"the matrix holds a value of magnitude {largest:.3g}; "
            "at most 1e38 can be coded"
        )


def half_scale(matrix: Tensor) -> float:
    """Return the power of two in units of which float16 holds the matrix best.

    In its units the largest magnitude is 2^14 to 2^15.

    >>> half_scale(torch.tensor([[1.0, -3.0]]))
    0.0001220703125
    """
    largest = largest_magnitude(matrix)
    if largest == 0:
        return 1.0
    _, exponent = frexp(largest)
    scale_exponent = max(exponent - _HALF_EXPONENT, _LEAST_EXPONENT)
    return float(2.0**scale_exponent)


def to_half(scaled: Tensor, scale: float) -> Tensor:
    """Round to float16, but not beyond a magnitude of 1e38 in units of `scale`."""
    limit_in_units = min(MAGNITUDE_LIMIT / scale, HALF_LIMIT)
    rounded = np.float16(limit_in_units)
    # Rounding may have taken it beyond the limit; the float16 below is within it.
    below = np.nextafter(rounded, np.float16(0))
    limit = float(below)
    halves = scaled.half()
    return halves.clamp_(-limit, limit)


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
    lows = []
    highs = []
    # Part by part, the maxima find a wide matrix in the cache.
    for part in matrix.split(_BLOCK_COLUMNS, 1):
        lows.append(part.amin(0))
        highs.append(part.amax(0))
    low = _joined(lows).cpu().double()
    high = _joined(highs).cpu().double()
    _check_magnitude(_largest(low.numpy(), high.numpy()))
    return low, high


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


@compiled
def _largest(low: Doubles, high: Doubles) -> float:
    """The largest magnitude; NaN if there is one."""
    largest = 0.0
    for column in range(len(low)):
        # no comparison with NaN is true
        if not -low[column] <= np.inf or not high[column] <= np.inf:
            return np.nan
        largest = max(largest, -low[column], high[column])
    return largest


def column_means(matrix: Tensor) -> Tensor:
    """Mean of each column, (K,), float64 on the CPU.

    >>> column_means(torch.tensor([[1.0, 5.0], [3.0, 5.0]])).tolist()
    [2.0, 5.0]
    """
    first = matrix[0]
    mean_shift = torch.zeros_like(first)
    # sum (x_b - x_1) / B, block by block
    for shifted, weights in _blocks(matrix):
        mean_shift.addmv_(shifted.T, weights)
    return first.double().cpu() + mean_shift.cpu()


def column_deviations(matrix: Tensor, spans: Tensor) -> Tensor:
    """Population standard deviation of each column in units of `spans`.

    Parameters
    ----------
    matrix : Tensor
        float32 (B, K), on any device.
    spans : Tensor
        At least maximum minus minimum of each column, float64 (K,) on the CPU: scaled
        first, no square overflows or vanishes.

    Returns
    -------
    deviations : Tensor
        float64 (K,) on the CPU.

    Examples
    --------
    >>> matrix = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    >>> column_deviations(matrix, torch.tensor([4.0, 0.0])).tolist()
    [0.25, 0.0]
    """
    scale = torch.from_numpy(_scales(spans.numpy())).to(matrix.device)
    mean = torch.zeros_like(scale)
    mean_square = torch.zeros_like(scale)
    # sum y_b / B and sum y_b^2 / B, block by block
    for shifted, weights in _blocks(matrix):
        scaled = shifted.mul_(scale)
        mean.addmv_(scaled.T, weights)
        mean_square.addmv_(scaled.square_().T, weights)
    deviations = _deviations(mean.cpu().numpy(), mean_square.cpu().numpy())
    return torch.from_numpy(deviations)


@compiled
def _scales(spans: Doubles) -> Floats:
    scales = np.empty(len(spans), np.float32)
    for column in range(len(spans)):
        # A column of one value has no span; its deviation is 0 in any unit.
        scales[column] = min(1.0 / spans[column], _LARGEST_SCALE)
    return scales


@compiled
def _deviations(mean: Floats, mean_square: Floats) -> Doubles:
    deviations = np.empty(len(mean))
    for column in range(len(mean)):
        variance = np.float64(mean_square[column]) - np.float64(mean[column]) ** 2
        # Rounding may leave a little less than 0.
        deviations[column] = np.sqrt(max(variance, 0.0))
    return deviations


def _blocks(matrix: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield blocks of rows less the first row, with weights ``1/B``.

    Blocks stay in the cache; a GPU takes all rows at once.
    """
    rows, columns = matrix.shape
    block_rows = rows
    if not matrix.is_cuda:
        block_rows = max(1, _BLOCK_ENTRIES // max(1, columns))
    weights = matrix.new_full((rows,), 1 / rows)
    first = matrix[0]
    for begin in range(0, rows, block_rows):
        end = begin + block_rows
        yield matrix[begin:end] - first, weights[begin:end]
