"""The contract of quantisers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from flwr_splitfc.codec.channels import Layout


class Quantiser(ABC):
    """Turns a matrix and a budget into bytes, and bytes into a matrix.

    A quantiser is a frozen dataclass whose fields are its settings; it keeps no state.
    ``K`` may be 0. Whoever decodes knows (B, K); every payload decodes to the same
    floats on any machine.
    """

    version: ClassVar[int] = 1
    """The version of the byte format; old payloads do not decode with a new one."""

    budgeted: ClassVar[bool] = True
    """Whether the budget bounds the payload; fixed precisions ignore it."""

    has_quality: ClassVar[bool] = False
    """Whether `at_step` works, and so a quality may take the budgets' place."""

    default_quality: ClassVar[float | None] = None
    """In decibels, where neither a quality nor a budget is set; None for budgets."""

    kept_entry_bits: ClassVar[float | None] = None
    """How many bits of a budget each entry of a kept column had best get, as measured.

    None where nobody measured it.
    """

    @property
    def gradient_correction(self) -> float:
        """``lambda``, by which the device corrects the gradient for lost features.

        ``g + lambda (z - z~)`` with the features ``z`` and what the server saw, ``z~``.
        """
        return 0.0

    def for_gradient(self) -> Quantiser:
        """Return the quantiser of the gradient.

        A method that is for features alone names another here.
        """
        return self

    def for_layout(self, layout: Layout) -> Quantiser:
        """Return the quantiser of features of this layout, and of their gradient.

        For a method that sees more than columns.
        """
        return self

    def at_step(self, step: float) -> Quantiser:
        """Return the quantiser that tells entries apart that differ by about `step`.

        It spends what that takes of a budget, and no more.

        Parameters
        ----------
        step : float
            Above 0, in the matrix' unit; see `flwr_splitfc.codec.quality`.

        Raises
        ------
        ValueError
            Without `has_quality`.
        """
        raise ValueError(f"{type(self).__name__} has no quality")

    @abstractmethod
    def encode(self, matrix: Tensor, budget_bytes: int) -> bytes:
        """Encode a float32 (B, K) matrix, on any device, in at most `budget_bytes`.

        Below `smallest_bytes` the smallest payload is made.

        Raises
        ------
        ValueError
            If the matrix holds NaN, inf or a magnitude above 1e38.
        """

    @abstractmethod
    def decode(self, data: memoryview, rows: int, columns: int) -> Tensor:
        """Decode to a finite float32 (B, K) matrix on the CPU.

        Raises
        ------
        PayloadError
            If the bytes are no payload of this shape.
        """

    @abstractmethod
    def smallest_bytes(self, rows: int, columns: int) -> int:
        """Return bytes that are enough for any (B, K) matrix."""
