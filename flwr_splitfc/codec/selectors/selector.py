"""The contract of selectors."""

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
    """The version of the byte format; old payloads do not decode with a new one."""

    budgeted: ClassVar[bool] = False
    """Whether ``K`` follows from the budgets; otherwise the selector alone decides."""

    levels: ClassVar[bool] = False
    """Whether `pack` writes by what channels are levelled: it keeps all columns."""

    @property
    def rescales(self) -> bool:
        """Whether kept features are scaled, to make up for dropped ones.

        They are right on average then, and each of them is far off.
        """
        return False

    def within(self, bits: float, entry_bits: float | None) -> Selector:
        """Return this selector with what a budget decides that no setting does.

        Parameters
        ----------
        bits : float
            The budget of the features, per entry of the (B, D) matrix.
        entry_bits : float or None
            `Quantiser.kept_entry_bits`.
        """
        return self

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
        """Read the server's link for (B, D) features; return the bytes that follow.

        Raises
        ------
        PayloadError
            If the bytes are no selection of this shape.
        """

    def useful_bytes(self, link: Link, budget_bytes: int) -> int:
        """Return how much of a budget to spend on what a link selects.

        All of it, unless a selector knows better.
        """
        return budget_bytes

    @abstractmethod
    def most_columns(self, columns: int, *, training: bool = True) -> int:
        """Return ``K`` in the worst case, out of ``D`` columns.

        A budget must provide for it.
        """

    @abstractmethod
    def most_bytes(self, rows: int, kept: int, columns: int) -> int:
        """Return the length of `pack` in the worst case, with up to `kept` columns.

        It grows with `kept`.
        """
