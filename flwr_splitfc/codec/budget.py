"""Budgets in bits per entry, and whether a codec's payloads fit into them.

A budget of ``r`` bits per entry pays for ``floor(B D r / 8)`` bytes of a (B, D) matrix,
all included. It works for every batch if the longest selection and the quantiser's
smallest payload fit into it; the smallest one that does is rounded up to four decimals.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import Literal, TypeAlias, get_args

from flwr_splitfc.codec.errors import BudgetError
from flwr_splitfc.codec.quality import NO_CEILING
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
    """What payloads of a selector and a quantiser cost, whatever the features hold.

    Parameters
    ----------
    selector, quantiser
        The parts of the codec.
    rows, columns : int
        The features' shape, (B, D).
    """

    selector: Selector
    quantiser: Quantiser
    rows: int
    columns: int

    @property
    def budgeted(self) -> bool:
        """Whether budgets bind: all do as soon as one part spends one."""
        parts = (self.selector, self.quantiser, self.quantiser.for_gradient())
        return any(part.budgeted for part in parts)

    def features_bits(self, *, training: bool) -> float:
        """Return the smallest budget that works for all features of this shape.

        It is 0 for codecs that ignore the budget.
        """
        if not self.budgeted:
            return 0.0
        kept = self.selector.most_columns(self.columns, training=training)
        most_bytes = self.features_bytes(kept)
        return bits_for(most_bytes, self.rows, self.columns)

    def gradient_bits(self) -> float:
        """Return the smallest budget that works for the gradients of all features.

        It is 0 for codecs that ignore the budget.
        """
        if not self.budgeted:
            return 0.0
        kept = self.selector.most_columns(self.columns)
        most_bytes = self.gradient_bytes(kept)
        return bits_for(most_bytes, self.rows, self.columns)

    def features_bytes(self, kept: int) -> int:
        """Return bytes that are enough for features with up to `kept` columns sent."""
        selection_bytes = self.selector.most_bytes(self.rows, kept, self.columns)
        matrix_bytes = self.quantiser.smallest_bytes(self.rows, kept)
        return selection_bytes + matrix_bytes

    def gradient_bytes(self, kept: int) -> int:
        """Return bytes that are enough for the gradient of `kept` columns."""
        quantiser = self.quantiser.for_gradient()
        return quantiser.smallest_bytes(self.rows, kept)


@dataclass(frozen=True)
class Budgets:
    """The budgets of a codec for features of one shape.

    Parameters
    ----------
    worst_case : WorstCase
        What the codec's payloads of this shape cost.
    uplink_bits, downlink_bits : float
        Budgets in bits per entry.
    evaluation_bits : float or None
        The budget of features when nothing trains; None if the codec does not send
        them.
    mirrored : bool
        Whether features go down and their gradient up.
    only_ceilings : bool
        Whether a quality says what is spent. `NO_CEILING` then pays for float32 beside
        the smallest payload, of any shape.
    """

    worst_case: WorstCase
    uplink_bits: float
    downlink_bits: float
    evaluation_bits: float | None
    mirrored: bool
    only_ceilings: bool

    def features_bytes(self, *, training: bool) -> int:
        """Return the bytes that the features may take."""
        return self._bytes(self._features_setting(training))

    def gradient_bytes(self) -> int:
        """Return the bytes that the gradient may take."""
        return self._bytes(self._gradient_setting)

    def affordable(self, *, training: bool) -> int:
        """Return the largest ``K`` that is sure to meet the budgets.

        In training, the gradient must meet its budget, too. It is ``D`` for a selector
        that does not go by the budgets.
        """
        case = self.worst_case
        if not case.selector.budgeted:
            return case.columns

        def too_many(kept: int) -> bool:
            return not self.leave_room(kept, training=training)

        # Payloads grow with K: the first of 1 ... D that is too many follows the
        # largest that is not, which is its place in the range.
        candidates = range(1, case.columns + 1)
        return bisect_left(candidates, True, key=too_many)

    def leave_room(self, kept: int, more_bytes: int = 0, *, training: bool) -> bool:
        """Tell whether `kept` columns are sure to meet the budgets with bytes beside.

        In training, so many go with the gradient, too.
        """
        case = self.worst_case
        features_bytes = case.features_bytes(kept) + more_bytes
        if features_bytes > self.features_bytes(training=training):
            return False
        if not training:
            return True
        return case.gradient_bytes(kept) + more_bytes <= self.gradient_bytes()

    @cached_property
    def smallest_bits(self) -> tuple[float, float]:
        """The smallest uplink and downlink budgets that work for all batches."""
        features_bits = self.worst_case.features_bits(training=True)
        gradient_bits = self.worst_case.gradient_bits()
        if self.mirrored:
            return gradient_bits, features_bits
        return features_bits, gradient_bits

    @property
    def are_enough(self) -> bool:
        """Whether no budget of training is impossible."""
        problems = self._problems
        return not (problems["uplink_bits"] or problems["downlink_bits"])

    def check(self) -> None:
        """Raise a `BudgetError` that names all budgets that are impossible."""
        self._check("uplink_bits", "downlink_bits", "evaluation_bits")

    def check_features(self, *, training: bool) -> None:
        """Raise a `BudgetError` if the features' budget is impossible."""
        self._check(self._features_setting(training))

    def check_gradient(self) -> None:
        """Raise a `BudgetError` if the gradient's budget is impossible."""
        self._check(self._gradient_setting)

    def _check(self, *settings: Setting) -> None:
        found = [self._problems[setting] for setting in settings]
        problems = [problem for problem in found if problem is not None]
        if problems:
            raise BudgetError("; ".join(problems))

    @cached_property
    def _problems(self) -> dict[Setting, str | None]:
        settings: tuple[Setting, ...] = get_args(Setting)
        return {setting: self._problem(setting) for setting in settings}

    def _problem(self, setting: Setting) -> str | None:
        """Return the message about a budget that is impossible, None for others."""
        bits = self._bits(setting)
        if bits is None:
            return None
        least = self._least_bits(setting)
        if bits >= least:
            return None
        case = self.worst_case
        return (
            f"{setting}={bits} is too small for {case.rows} x {case.columns}; "
            f"the smallest that works is {least}"
        )

    def _least_bits(self, setting: Setting) -> float:
        if setting == "evaluation_bits":
            return self._smallest_evaluation_bits
        uplink_bits, downlink_bits = self.smallest_bits
        if setting == "uplink_bits":
            return uplink_bits
        return downlink_bits

    @cached_property
    def _smallest_evaluation_bits(self) -> float:
        return self.worst_case.features_bits(training=False)

    def _bytes(self, setting: Setting) -> int:
        bits = self._bits(setting)
        # Evaluation's is only asked for where the codec itself sends its features.
        assert bits is not None
        case = self.worst_case
        return budget_bytes(case.rows, case.columns, bits)

    def _bits(self, setting: Setting) -> float | None:
        bits: float | None = getattr(self, setting)
        if bits == NO_CEILING and self.only_ceilings:
            return NO_CEILING + self._least_bits(setting)
        # An integer would be printed without its decimal point.
        return None if bits is None else float(bits)

    def _features_setting(self, training: bool) -> Setting:
        if not training:
            return "evaluation_bits"
        return "downlink_bits" if self.mirrored else "uplink_bits"

    @property
    def _gradient_setting(self) -> Setting:
        return "uplink_bits" if self.mirrored else "downlink_bits"
