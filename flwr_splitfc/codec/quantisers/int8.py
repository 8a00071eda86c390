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
from torch import Tensor

from flwr_splitfc.codec.arrays import Floats, Octets
from flwr_splitfc.codec.errors import PayloadError
from flwr_splitfc.codec.format.floats import MAGNITUDE_LIMIT, pack_floats
from flwr_splitfc.codec.quantisers.quantiser import Quantiser
from flwr_splitfc.codec.statistics import column_extremes

_LAST_LEVEL = 255
_INTERVAL_BYTES = 8

# From so many rows on, columns have intervals of their own. The two ends cost a bit an
# entry there, and less with more rows.
_FEWEST_ROWS = 64


@dataclass(frozen=True)
class Int8(Quantiser):
    """Sends entries as one of 256 even levels, whatever the budget.

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
        step = (high - low) / np.float32(_LAST_LEVEL)
        values = entries.astype(np.float32)
        values *= step
        values += low
        return torch.from_numpy(values)

    def smallest_bytes(self, rows: int, columns: int) -> int:
        intervals_bytes = _INTERVAL_BYTES * _groups(rows, columns)
        return intervals_bytes + rows * columns


def _groups(rows: int, columns: int) -> int:
    """Return how many intervals a matrix has: one a column, or one for all."""
    return columns if rows >= _FEWEST_ROWS else min(columns, 1)


def _nearest_levels(matrix: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return the levels nearest to the entries, uint8 (B, K) on the matrix's device."""
    low = low.to(matrix.device)
    high = high.to(matrix.device)
    span = high - low
    # Where all entries are equal, any span makes them level 0.
    divisor = span.where(span > 0, 1.0)
    shares = matrix.sub(low).div_(divisor)
    levels = shares.mul_(_LAST_LEVEL).round_()
    return levels.byte()


def _pack_octets(low: Floats, high: Floats, entries: Octets) -> bytes:
    """Write intervals and one byte for each entry."""
    ends = pack_floats(low, "<f4") + pack_floats(high, "<f4")
    return ends + entries.tobytes()


def _unpack_octets(
    data: memoryview, groups: int, rows: int, columns: int
) -> tuple[Floats, Floats, Octets]:
    """Read so many intervals, ends apart, and a (rows, columns) matrix of bytes."""
    intervals_bytes = _INTERVAL_BYTES * groups
    size = intervals_bytes + rows * columns
    if len(data) != size:
        raise PayloadError(
            f"matrix has {len(data)} bytes; "
            f"{rows} x {columns} of 8 bits in {groups} groups take {size}"
        )
    ends = np.frombuffer(data[:intervals_bytes], "<f4")
    native = ends.astype(np.float32)
    low, high = native.reshape(2, groups)
    _check_intervals(low, high)
    entries = np.frombuffer(data[intervals_bytes:], np.uint8)
    return low, high, entries.reshape(rows, columns)


def _check_intervals(low: Floats, high: Floats) -> None:
    ordered = low <= high
    not_too_low = low >= -MAGNITUDE_LIMIT
    not_too_high = high <= MAGNITUDE_LIMIT
    # NaN is in no order.
    legal = ordered & not_too_low & not_too_high
    if not bool(legal.all()):
        raise PayloadError("an interval is not finite, ordered and at most 1e38")
