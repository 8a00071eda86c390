"""Everything is sent."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from flwr_splitfc.codec.link import Link
from flwr_splitfc.codec.selectors.selection import Selection
from flwr_splitfc.codec.selectors.selector import Selector


@dataclass(frozen=True)
class AllColumns(Selector):
    """Sends every column, unscaled; the selection costs no bytes."""

    def select(self, matrix: Tensor, selection: Selection) -> tuple[Tensor, Link]:
        rows, width = matrix.shape
        link = Link(rows, width, device=matrix.device)
        return matrix, link

    def pack(self, link: Link) -> bytes:
        return b""

    def unpack(
        self, data: memoryview, rows: int, columns: int
    ) -> tuple[Link, memoryview]:
        return Link(rows, columns), data

    def most_columns(self, columns: int, *, training: bool = True) -> int:
        return columns

    def most_bytes(self, rows: int, kept: int, columns: int) -> int:
        return 0
