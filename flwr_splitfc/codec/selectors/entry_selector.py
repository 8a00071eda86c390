"""Selection of single entries: every row keeps its own."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from flwr_splitfc.codec.channels import Channels
from flwr_splitfc.codec.format import wire
from flwr_splitfc.codec.link import Link
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

    def select(
        self,
        matrix: Tensor,
        channels: Channels,
        generator: torch.Generator | None,
        *,
        affordable: int,
        budget_bytes: int,
        training: bool = True,
        all_rows: bool = False,
    ) -> tuple[Tensor, Link]:
        check_entries(matrix)
        rows, width = matrix.shape
        kept = max(affordable, 1)
        if kept >= width:
            return matrix, Link(rows, width, device=matrix.device)
        columns = self.choose(matrix.abs(), kept, generator, training=training)
        link = Link(rows, width, columns.sort(1).values, device=matrix.device)
        return link.restrict(matrix), link

    def pack(self, link: Link) -> bytes:
        columns = None if link.columns is None else link.columns.cpu().numpy()
        return wire.pack_entries(columns, link.width)

    def unpack(
        self, data: memoryview, rows: int, columns: int
    ) -> tuple[Link, memoryview]:
        kept, rest = wire.unpack_entries(data, rows, columns)
        return Link(
            rows, columns, None if kept is None else torch.from_numpy(kept)
        ), rest

    def most_columns(self, columns: int, *, training: bool = True) -> int:
        """One: whatever the budgets, no fewer are sent."""
        return 1

    def most_bytes(self, rows: int, kept: int, columns: int) -> int:
        return wire.selection_bytes(0, rows * kept, rows * columns)


def largest_entries(magnitude: Tensor, kept: int) -> Tensor:
    """Columns of the `kept` largest entries of each row, (B, S) in any order.

    >>> largest_entries(torch.tensor([[1.0, 5.0, 2.0], [7.0, 0.0, 3.0]]), 2).sort(1).values.tolist()
    [[1, 2], [0, 2]]
    """
    return magnitude.topk(kept, 1, sorted=False).indices
