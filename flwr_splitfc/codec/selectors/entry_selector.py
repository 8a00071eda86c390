"""Selection of single entries: every row keeps its own."""

from __future__ import annotations

import struct
from abc import abstractmethod
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from flwr_splitfc.codec.arrays import Ints
from flwr_splitfc.codec.errors import PayloadError
from flwr_splitfc.codec.format.column_sets import (
    pack_columns,
    selection_bytes,
    unpack_columns,
)
from flwr_splitfc.codec.format.fields import take
from flwr_splitfc.codec.link import Link
from flwr_splitfc.codec.selectors.selection import Selection
from flwr_splitfc.codec.selectors.selector import Selector
from flwr_splitfc.codec.statistics import check_entries


class EntrySelector(Selector):
    """Keeps ``S`` entries of each row, unscaled, as many as both budgets pay for; at least one.

    The gradient comes back for the same entries, without their positions. All (B, S)
    positions are sent as one set out of ``B D``.
    """

    budgeted: ClassVar[bool] = True

    @abstractmethod
    def choose(
        self,
        magnitude: Tensor,
        kept: int,
        generator: torch.Generator | None,
        *,
        training: bool,
    ) -> Tensor:
        """Columns of the `kept` entries of each row, (B, S) in any order, by the entries' magnitude (B, D)."""

    def select(self, matrix: Tensor, selection: Selection) -> tuple[Tensor, Link]:
        check_entries(matrix)
        rows, width = matrix.shape
        kept = max(selection.affordable, 1)
        if kept >= width:
            return matrix, Link(rows, width, device=matrix.device)
        columns = self.choose(
            matrix.abs(), kept, selection.generator, training=selection.training
        )
        link = Link(rows, width, columns.sort(1).values, device=matrix.device)
        return link.restrict(matrix), link

    def pack(self, link: Link) -> bytes:
        columns = None if link.columns is None else link.columns.cpu().numpy()
        return pack_entries(columns, link.width)

    def unpack(
        self, data: memoryview, rows: int, columns: int
    ) -> tuple[Link, memoryview]:
        kept, rest = unpack_entries(data, rows, columns)
        return Link(
            rows, columns, None if kept is None else torch.from_numpy(kept)
        ), rest

    def most_columns(self, columns: int, *, training: bool = True) -> int:
        """One: whatever the budgets, no fewer are sent."""
        return 1

    def most_bytes(self, rows: int, kept: int, columns: int) -> int:
        return selection_bytes(0, rows * kept, rows * columns)


def largest_entries(magnitude: Tensor, kept: int) -> Tensor:
    """Columns of the `kept` largest entries of each row, (B, S) in any order.

    >>> largest_entries(torch.tensor([[1.0, 5.0, 2.0], [7.0, 0.0, 3.0]]), 2).sort(1).values.tolist()
    [[1, 2], [0, 2]]
    """
    return magnitude.topk(kept, 1, sorted=False).indices


def pack_entries(columns: Ints | None, width: int) -> bytes:
    """Write which of `width` columns each row keeps, increasing (B, S); None is all of them."""
    if columns is None:
        return struct.pack("<I", width)
    rows, kept = columns.shape
    flat = (columns + width * np.arange(rows)[:, None]).ravel()
    return struct.pack("<I", kept) + pack_columns(flat, rows * width)


def unpack_entries(
    data: memoryview, rows: int, width: int
) -> tuple[Ints | None, memoryview]:
    """Read which of `width` columns each row keeps, (B, S), None for all, and return the rest."""
    (kept,), rest = take(data, "I")
    if kept > width:
        raise PayloadError(f"selection keeps {kept} entries of {width} in each row")
    if kept == width:
        return None, rest
    flat, rest = unpack_columns(rest, rows * kept, rows * width)
    columns = flat.reshape(rows, kept)
    columns -= width * np.arange(rows)[:, None]
    if columns.size and not 0 <= columns[:, 0].min() <= columns[:, -1].max() < width:
        raise PayloadError(f"a row does not keep {kept} entries")
    return columns, rest
