"""Single precision: the identity, as a baseline on the same path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from flwr_splitfc.codec.format.floats import pack_floats, unpack_floats
from flwr_splitfc.codec.quantisers.quantiser import Quantiser
from flwr_splitfc.codec.statistics import check_entries


@dataclass(frozen=True)
class Float32(Quantiser):
    """Sends entries as float32, whatever the budget.

    Examples
    --------
    >>> import torch
    >>> payload = Float32().encode(torch.tensor([[1.0, 2.5]]), 0)
    >>> Float32().decode(memoryview(payload), 1, 2)
    tensor([[1.0000, 2.5000]])
    """

    budgeted: ClassVar[bool] = False

    def encode(self, matrix: Tensor, budget_bytes: int) -> bytes:
        check_entries(matrix)
        return pack_floats(matrix.cpu().numpy(), "<f4")

    def decode(self, data: memoryview, rows: int, columns: int) -> Tensor:
        return unpack_floats(data, rows, columns, "<f4")

    def smallest_bytes(self, rows: int, columns: int) -> int:
        return 4 * rows * columns
