"""Half precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from torch import Tensor

from flwr_splitfc.codec.format.floats import pack_floats, unpack_floats
from flwr_splitfc.codec.quantisers.quantiser import Quantiser
from flwr_splitfc.codec.statistics import HALF_LIMIT, check_entries, matrix_extremes

_MOST_ERROR: Final = 1e-4
_BLOCK_ENTRIES: Final = 2**17  # that stay in the cache


@dataclass(frozen=True)
class Float16(Quantiser):
    """Sends entries as float16, clamped to +-65504, whatever the budget.

    Examples
    --------
    >>> import torch
    >>> payload = Float16().encode(torch.tensor([[0.1, 1e6]]), 0)
    >>> Float16().decode(memoryview(payload), 1, 2)
    tensor([[9.9976e-02, 6.5504e+04]])
    """

    budgeted: ClassVar[bool] = False

    def encode(self, matrix: Tensor, budget_bytes: int) -> bytes:
        check_entries(matrix)
        entries = matrix.half().clamp_(-HALF_LIMIT, HALF_LIMIT)
        return pack_floats(entries.cpu().numpy(), "<f2")

    def decode(self, data: memoryview, rows: int, columns: int) -> Tensor:
        return unpack_floats(data, rows, columns, "<f2")

    def smallest_bytes(self, rows: int, columns: int) -> int:
        return 2 * rows * columns


def is_half_enough(matrix: Tensor) -> bool:
    """Tell whether float16 is precise enough for how a matrix's columns vary.

    The squared error may be 1e-4 of the squared deviations from the columns' means, in
    sums over all entries; of the squares where no column varies, as in one row.

    Parameters
    ----------
    matrix : Tensor
        float32 (B, D), on any device.

    Raises
    ------
    ValueError
        If the matrix holds NaN, inf or a magnitude above 1e38.

    Examples
    --------
    >>> import torch
    >>> is_half_enough(torch.tensor([[0.1], [0.2]]))
    True
    >>> is_half_enough(torch.tensor([[1000.1], [1000.2]]))
    False
    """
    low, high = matrix_extremes(matrix)
    largest = max(-low, high)
    if largest == 0:
        return True
    if largest > HALF_LIMIT:
        return False
    error = deviation = 0.0
    block_columns = max(1, _BLOCK_ENTRIES // len(matrix))
    for block in matrix.split(block_columns, 1):
        error += _squares(block - block.half(), largest)
        # a column of one value deviates by exactly 0, and an offset costs no accuracy
        shifted = block - block[0]
        deviation += _squares(shifted - shifted.mean(0), largest)
    if deviation == 0:
        deviation = _squares(matrix, largest)
    return error <= _MOST_ERROR * deviation


def _squares(matrix: Tensor, unit: float) -> float:
    """The sum of all squares, in which those of tiny entries do not vanish."""
    return float(matrix.div(unit).square_().sum())
