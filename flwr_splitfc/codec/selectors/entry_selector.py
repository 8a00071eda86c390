"""Selection of single entries: every row keeps its own.

A selection of entries is ``u32`` S and one column set of B S out of B D places, that of
entry (b, d) being ``b D + d``: each row has S of them (docs/wire-format.md, section 3).
"""

from __future__ import annotations

import struct
from abc import abstractmethod
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from flwr_splitfc.codec.arrays import Ints, from_ints, to_ints
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
    """Keeps ``S`` entries of each row, unscaled; at least one.

    As many as both budgets pay for. The gradient comes back for the same entries,
    without their positions.
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
        """Choose the columns of the `kept` entries of each row.

        Parameters
        ----------
        magnitude : Tensor
            The entries' magnitudes, (B, D).
        kept : int
            ``S``, below ``D``.
        generator : torch.Generator, optional
            The source of all randomness.
        training : bool
            False asks for a choice without anything random.

        Returns
        -------
        columns : Tensor
            (B, S), in any order.
        """

    def select(self, matrix: Tensor, selection: Selection) -> tuple[Tensor, Link]:
        check_entries(matrix)
        rows, width = matrix.shape
        kept = max(selection.affordable, 1)
        if kept >= width:
            return matrix, Link(rows, width, device=matrix.device)
        columns = self.choose(
            matrix.abs(), kept, selection.generator, training=selection.training
        )
        ordered = columns.sort(1).values
        link = Link(rows, width, ordered, device=matrix.device)
        return link.restrict(matrix), link

    def pack(self, link: Link) -> bytes:
        columns = to_ints(link.columns)
        return pack_entries(columns, link.width)

    def unpack(
        self, data: memoryview, rows: int, columns: int
    ) -> tuple[Link, memoryview]:
        kept, rest = unpack_entries(data, rows, columns)
        link = Link(rows, columns, from_ints(kept))
        return link, rest

    def most_columns(self, columns: int, *, training: bool = True) -> int:
        """Return 1: whatever the budgets, no fewer are sent."""
        return 1

    def most_bytes(self, rows: int, kept: int, columns: int) -> int:
        return selection_bytes(0, rows * kept, rows * columns)


def largest_entries(magnitude: Tensor, kept: int) -> Tensor:
    """Return the columns of the `kept` largest entries of each row.

    They are (B, S), in any order.

    >>> magnitude = torch.tensor([[1.0, 5.0, 2.0], [7.0, 0.0, 3.0]])
    >>> largest_entries(magnitude, 2).sort(1).values.tolist()
    [[1, 2], [0, 2]]
    """
    return magnitude.topk(kept, 1, sorted=False).indices


def pack_entries(columns: Ints | None, width: int) -> bytes:
    """Write which of `width` columns each row keeps, increasing (B, S).

    None is all of them.
    """
    if columns is None:
        return struct.pack("<I", width)
    rows, kept = columns.shape
    places = columns + _first_places(rows, width)
    total = rows * width
    count = struct.pack("<I", kept)
    return count + pack_columns(places.ravel(), total)


def unpack_entries(
    data: memoryview, rows: int, width: int
) -> tuple[Ints | None, memoryview]:
    """Read which of `width` columns each row keeps, and return the rest.

    They are (B, S), None for all.
    """
    (kept,), rest = take(data, "I")
    if kept > width:
        raise PayloadError(f"selection keeps {kept} entries of {width} in each row")
    if kept == width:
        return None, rest
    count = rows * kept
    total = rows * width
    places, rest = unpack_columns(rest, count, total)
    columns = places.reshape(rows, kept)
    columns -= _first_places(rows, width)
    # Places increase, so each row's first and last column tell whether all are its own.
    if columns.size and (columns[:, 0].min() < 0 or columns[:, -1].max() >= width):
        raise PayloadError(f"a row does not keep {kept} entries")
    return columns, rest


def _first_places(rows: int, width: int) -> Ints:
    """Return the place of each row's first entry, (B, 1)."""
    first_places = width * np.arange(rows)
    return first_places[:, None]
