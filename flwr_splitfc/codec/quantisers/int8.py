"""Eight bits an entry, on even levels (Jacob et al., 1712.05877, Sec. 2.1).

An entry x of a group of columns with the extremes ``low`` and ``high`` is sent as

    round(255 (x - low) / (high - low))

and decoded to ``low + entry (high - low) / 255``. A payload is the groups' f32 ``low``,
their f32 ``high``, and a byte for each entry, row by row.
"""

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

_LAST_LEVEL = 255
_FEWEST_ROWS = 64
"""From which on columns have intervals of their own.

The two ends cost a bit an entry there, and less with more rows.
"""


@dataclass(frozen=True)
class Int8(Quantiser):
    """Sends every entry as one of 256 even levels; ignores the budget.

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
        column_low, column_high = column_extremes(matrix)
        low = column_low.float()
        high = column_high.float()
        if _groups(rows, columns) == 1:
            low = low.amin(0, keepdim=True)
            high = high.amax(0, keepdim=True)
        entries = _nearest_levels(matrix, low, high)
        return _pack_octets(low.numpy(), high.numpy(), entries.cpu().numpy())

    def decode(self, data: memoryview, rows: int, columns: int) -> Tensor:
        groups = _groups(rows, columns)
        low, high, entries = _unpack_octets(data, groups, rows, columns)
        values = entries.astype(np.float32)
        values *= (high - low) / np.float32(_LAST_LEVEL)
        values += low
        return torch.from_numpy(values)

    def smallest_bytes(self, rows: int, columns: int) -> int:
        return _payload_bytes(_groups(rows, columns), rows, columns)


def _groups(rows: int, columns: int) -> int:
    """Return how many intervals a matrix has: one a column, or one for all."""
    return columns if rows >= _FEWEST_ROWS else min(columns, 1)


def _nearest_levels(matrix: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return the levels nearest to the entries, uint8 (B, K) on the matrix's device."""
    span = (high - low).to(matrix.device)
    # Where all entries are equal, any span makes them level 0.
    divisor = span.where(span > 0, 1.0)
    shares = matrix.sub(low.to(matrix.device)).div_(divisor)
    return shares.mul_(_LAST_LEVEL).round_().byte()


def _payload_bytes(groups: int, rows: int, columns: int) -> int:
    interval_bytes = 8
    return interval_bytes * groups + rows * columns


def _pack_octets(low: Floats, high: Floats, entries: NDArray[np.uint8]) -> bytes:
    """Write intervals and one byte for each entry."""
    return pack_floats(low, "<f4") + pack_floats(high, "<f4") + entries.tobytes()


def _unpack_octets(
    data: memoryview, groups: int, rows: int, columns: int
) -> tuple[Floats, Floats, NDArray[np.uint8]]:
    """Read so many intervals, ends apart, and a (rows, columns) matrix of bytes."""
    size = _payload_bytes(groups, rows, columns)
    if len(data) != size:
        raise PayloadError(
            f"matrix has {len(data)} bytes; "
            f"{rows} x {columns} of 8 bits in {groups} groups take {size}"
        )
    entries_start = size - rows * columns
    ends = np.frombuffer(data[:entries_start], "<f4").astype(np.float32)
    low, high = ends.reshape(2, groups)
    _check_intervals(low, high)
    entries = np.frombuffer(data[entries_start:], np.uint8)
    return low, high, entries.reshape(rows, columns)


def _check_intervals(low: Floats, high: Floats) -> None:
    ordered = low <= high
    bounded = (low >= -MAGNITUDE_LIMIT) & (high <= MAGNITUDE_LIMIT)
    if not bool((ordered & bounded).all()):
        raise PayloadError("an interval is not finite, ordered and at most 1e38")
