"""Eight bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flwr_splitfc.codec.arrays import Floats
from flwr_splitfc.codec.errors import PayloadError
from flwr_splitfc.codec.format.floats import MAGNITUDE_LIMIT, pack_floats
from flwr_splitfc.codec.quantisers.quantiser import Quantiser
from flwr_splitfc.codec.statistics import column_extremes

LAST = 255
FEWEST_ROWS = 64
"""From which on columns have intervals of their own: they cost a bit an entry there, and less with more rows."""


@dataclass(frozen=True)
class Int8(Quantiser):
    """Sends every entry as one of 256 even levels (Jacob et al., 1712.05877, Sec. 2.1); ignores the budget.

    Levels reach from a column's least entry to its greatest, or with fewer than 64 rows
    from the matrix's. Reconstructed: the paper learns the intervals in training and has
    a level at zero; here they are each batch's.

    Examples
    --------
    >>> matrix = torch.arange(256.0).repeat(2, 1)
    >>> payload = Int8().encode(matrix, 0)
    >>> len(payload), torch.equal(Int8().decode(memoryview(payload), 2, 256), matrix)
    (520, True)
    """

    budgeted: ClassVar[bool] = False

    def encode(self, matrix: Tensor, budget_bytes: int) -> bytes:
        rows, columns = matrix.shape
        if columns == 0:
            return b""
        low, high = (extreme.float() for extreme in column_extremes(matrix))
        if _groups(rows, columns) == 1:
            low, high = low.amin(0, keepdim=True), high.amax(0, keepdim=True)
        span = (high - low).to(matrix.device)
        entries = (
            matrix.sub(low.to(matrix.device))
            .div_(span.where(span > 0, 1.0))
            .mul_(LAST)
            .round_()
        )
        return pack_octets(low.numpy(), high.numpy(), entries.byte().cpu().numpy())

    def decode(self, data: memoryview, rows: int, columns: int) -> Tensor:
        low, high, entries = unpack_octets(data, _groups(rows, columns), rows, columns)
        values = entries.astype(np.float32)
        values *= (high - low) / np.float32(LAST)
        values += low
        return torch.from_numpy(values)

    def smallest_bytes(self, rows: int, columns: int) -> int:
        return 8 * _groups(rows, columns) + rows * columns


def _groups(rows: int, columns: int) -> int:
    return columns if rows >= FEWEST_ROWS else min(columns, 1)


def pack_octets(low: Floats, high: Floats, entries: NDArray[np.uint8]) -> bytes:
    """Write intervals and one byte for each entry."""
    return pack_floats(low, "<f4") + pack_floats(high, "<f4") + entries.tobytes()


def unpack_octets(
    data: memoryview, groups: int, rows: int, columns: int
) -> tuple[Floats, Floats, NDArray[np.uint8]]:
    """Read so many intervals, ends apart, and a (rows, columns) matrix of bytes."""
    size = 8 * groups + rows * columns
    if len(data) != size:
        raise PayloadError(
            f"matrix has {len(data)} bytes; {rows} x {columns} of 8 bits in {groups} groups take {size}"
        )
    low, high = (
        np.frombuffer(data[: 8 * groups], "<f4").astype(np.float32).reshape(2, groups)
    )
    if not bool(
        ((low >= -MAGNITUDE_LIMIT) & (low <= high) & (high <= MAGNITUDE_LIMIT)).all()
    ):
        raise PayloadError("an interval is not finite, ordered and at most 1e38")
    return low, high, np.frombuffer(data[8 * groups :], np.uint8).reshape(rows, columns)
