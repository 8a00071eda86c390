"""Budgets in bits per entry, and whether a codec's payloads fit into them.

A budget of ``r`` bits per entry pays for ``floor(B D r / 8)`` bytes of a (B, D) matrix,
all included. It works for every batch if the longest selection and the quantiser's
smallest payload fit into it; the smallest one that does is rounded up to four decimals.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from math import ceil
from typing import Literal, TypeAlias

from flwr_splitfc.codec.errors import BudgetError
from flwr_splitfc.codec.quantisers.quantiser import Quantiser
from flwr_splitfc.codec.selectors.selector import Selector

Setting: TypeAlias = Literal["uplink_bits", "downlink_bits", "evaluation_bits"]
"""The setting of a codec that holds a budget."""

_STEPS_PER_BIT = 10**4


def budget_bytes(rows: int, columns: int, bits: float) -> int:
    """Return the bytes that `bits` per entry pay for.

    >>> budget_bytes(256, 1152, bits=0.2)
    7372
    """
    return int(rows * columns * bits) // 8


def bits_for(size_bytes: int, rows: int, columns: int) -> float:
    """Return the least bits per entry, in steps of 1e-4, that pay for so many bytes.

    >>> bits_for(7372, 256, 1152)
    0.2
    """
    entries = rows * columns
    steps = ceil(8 * size_bytes * _STEPS_PER_BIT / entries)
    # A float may be a little less than the decimal that is printed for it.
    while budget_bytes(rows, columns, steps / _STEPS_PER_BIT) < size_bytes:
        steps += 1
    return float(steps / _STEPS_PER_BIT)


@dataclass(frozen=True)
class WorstCase:
    """What the payloads of a selector and a quantiser cost, whatever the features."""

    selector: Selector
    quantiser: Quantiser

    @property
    def budgeted(self) -> bool:
        """Whether budgets bind: all do as soon as one part spends one."""
        parts = (self.selector, self.quantiser, self.quantiser.for_gradient())
        return any(part.budgeted for part in parts)

    def features_bits(self, rows: int, columns: int, *, training: bool = True) -> float:
        """Return the smallest budget that works for all features of this shape.

        It is 0 for codecs that ignore the budget.
        """
        if not self.budgeted:
            return 0.0
        kept = self.selector.most_columns(columns, training=training)
        size_bytes = self.features_bytes(rows, kept, columns)
        return bits_for(size_bytes, rows, columns)

    def gradient_bits(self, rows: int, columns: int) -> float:
        """Return the smallest budget that works for the gradients of all features.

        It is 0 for codecs that ignore the budget.
        """
        if not self.budgeted:
            return 0.0
        kept = self.selector.most_columns(columns)
        size_bytes = self.gradient_bytes(rows, kept)
        return bits_for(size_bytes, rows, columns)

    def features_bytes(self, rows: int, kept: int, columns: int) -> int:
        """Return bytes that are enough for features with `kept` columns sent."""
        selection_bytes = self.selector.most_bytes(rows, kept, columns)
        return selection_bytes + self.quantiser.smallest_bytes(rows, kept)

    def gradient_bytes(self, rows: int, kept: int) -> int:
        """Return bytes that are enough for the gradient of `kept` columns."""
        return self.quantiser.for_gradient().smallest_bytes(rows, kept)


@dataclass(frozen=True)
class Budgets:
    """The budgets of a codec.

    Parameters
    ----------
    worst_case : WorstCase
        What the codec's payloads cost.
    uplink_bits, downlink_bits : float
        Budgets in bits per entry.
    evaluation_bits : float or None
        The budget of features when nothing trains; None if the codec does not send
        them.
    mirrored : bool
        Whether features go down and their gradient up.
    """

    worst_case: WorstCase
    uplink_bits: float
    downlink_bits: float
    evaluation_bits: float | None
    mirrored: bool

    def features_bytes(self, rows: int, columns: int, *, training: bool) -> int:
        """Return the bytes that (B, D) features may take."""
        return self._bytes(self._features_setting(training), rows, columns)

    def gradient_bytes(self, rows: int, columns: int) -> int:
        """Return the bytes that a (B, D) gradient may take."""
        return self._bytes(self._gradient_setting, rows, columns)

    def affordable(self, rows: int, columns: int, *, training: bool) -> int:
        """Return the largest ``K`` that is sure to meet the budgets.

        In training, the gradient must meet its budget, too. It is ``D`` for a selector
        that does not go by the budgets.
        """
        if not self.worst_case.selector.budgeted:
            return columns
        features_bytes = self.features_bytes(rows, columns, training=training)
        gradient_bytes = self.gradient_bytes(rows, columns)

        def too_many(kept: int) -> bool:
            if self.worst_case.features_bytes(rows, kept, columns) > features_bytes:
                return True
            if not training:
                return False
            return self.worst_case.gradient_bytes(rows, kept) > gradient_bytes

        return bisect_left(range(1, columns + 1), True, key=too_many)

    def smallest_bits(self, rows: int, columns: int) -> tuple[float, float]:
        """Return the smallest uplink and downlink budgets that work for all batches."""
        features_bits = self.worst_case.features_bits(rows, columns)
        gradient_bits = self.worst_case.gradient_bits(rows, columns)
        if self.mirrored:
            return gradient_bits, features_bits
        return features_bits, gradient_bits

    def check(self, rows: int, columns: int) -> None:
        """Raise a `BudgetError` that names all budgets that are impossible."""
        self._check(["uplink_bits", "downlink_bits", "evaluation_bits"], rows, columns)

    def check_features(self, rows: int, columns: int, *, training: bool) -> None:
        """Raise a `BudgetError` if the features' budget is impossible."""
        self._check([self._features_setting(training)], rows, columns)

    def check_gradient(self, rows: int, columns: int) -> None:
        """Raise a `BudgetError` if the gradient's budget is impossible."""
        self._check([self._gradient_setting], rows, columns)

    def _check(self, settings: list[Setting], rows: int, columns: int) -> None:
        problems = []
        for setting in settings:
            bits = self._bits(setting)
            if bits is None:
                continue
            least = self._least_bits(setting, rows, columns)
            if bits < least:
                problems.append(
                    f"{setting}={bits} is too small for {rows} x {columns}; "
                    f"the smallest that works is {least}"
                )
        if problems:
            raise BudgetError("; ".join(problems))

    def _least_bits(self, setting: Setting, rows: int, columns: int) -> float:
        if setting == "evaluation_bits":
            return self.worst_case.features_bits(rows, columns, training=False)
        uplink_bits, downlink_bits = self.smallest_bits(rows, columns)
        return uplink_bits if setting == "uplink_bits" else downlink_bits

    def _bytes(self, setting: Setting, rows: int, columns: int) -> int:
        bits = self._bits(setting)
        assert bits is not None  # nobody asks for evaluation's without having set it
        return budget_bytes(rows, columns, bits)

    def _bits(self, setting: Setting) -> float | None:
        value: float | None = getattr(self, setting)
        return None if value is None else float(value)

    def _features_setting(self, training: bool) -> Setting:
        if not training:
            return "evaluation_bits"
        return "downlink_bits" if self.mirrored else "uplink_bits"

    @property
    def _gradient_setting(self) -> Setting:
        return "uplink_bits" if self.mirrored else "downlink_bits"
