"""Half precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from flwr_splitfc.codec.format.floats import pack_floats, unpack_floats
from flwr_splitfc.codec.quantisers.quantiser import Quantiser
from flwr_splitfc.codec.statistics import HALF_LIMIT, check_entries


@dataclass(frozen=True)
class Float16(Quantiser):
    """Sends every entry as float16, clamped to +-65504; ignores the budget.

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
