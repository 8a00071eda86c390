"""What a selector is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from flwr_splitfc.codec.link import Link
from flwr_splitfc.codec.selectors.selection import Selection


class Selector(ABC):
    """Picks, and may scale, the part of the features that is sent.

    A selector is a frozen dataclass whose fields are its settings; it keeps no state.
    The device calls `select` and `pack`, the server `unpack`; the gradient comes back
    through the same selection (`Link.restrict` on the server, `Link.expand` on the
    device).
    """

    version: ClassVar[int] = 1
    """Of the byte format; old payloads do not decode with a new one."""

    budgeted: ClassVar[bool] = False
    """Whether ``K`` follows from the budgets; otherwise the selection is what it is."""

    @abstractmethod
    def select(self, matrix: Tensor, selection: Selection) -> tuple[Tensor, Link]:
        """Select from features, float32 (B, D), on the terms of `selection`.

        Returns
        -------
        kept : Tensor
            What is sent, (b, K).
        link : Link
            Stays on the device.
        """

    @abstractmethod
    def pack(self, link: Link) -> bytes:
        """Write what the server must know of the selection."""

    @abstractmethod
    def unpack(
        self, data: memoryview, rows: int, columns: int
    ) -> tuple[Link, memoryview]:
        """Read the server's link for (B, D) features, and the bytes that follow the selection.

        Raises
        ------
        PayloadError
            If the bytes are no selection of this shape.
        """

    def useful_bytes(self, link: Link, budget_bytes: int) -> int:
        """How much of a budget to spend on what a link selects: all of it, unless a selector knows better."""
        return budget_bytes

    @abstractmethod
    def most_columns(self, columns: int, *, training: bool = True) -> int:
        """``K`` in the worst case, out of ``D`` columns: what a budget must provide for."""

    @abstractmethod
    def most_bytes(self, rows: int, kept: int, columns: int) -> int:
        """Length of `pack` in the worst case, with up to `kept` of ``D`` columns; grows with `kept`."""
