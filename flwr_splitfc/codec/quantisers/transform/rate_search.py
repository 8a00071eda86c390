"""The search for the step with which a payload takes its budget.

Near a step, the bits fall about as a power of it, ``bits ~ step^-p``. So where a step
takes ``e^excess`` times the bits that are wanted, the step to try next is::

    step * e^(excess / p)

Of two steps that were tried, the second e^moved times as large, ``p = (excess of the
first - excess of the second) / moved``: the secant method, in logarithms.

First, the bits are estimated (`code_length`), which is fast, on some of the rows and
then on all. Then payloads are packed, mostly one or two. Steps are tried between those
that were too fine and those that were too coarse; where the power law leaves this
interval, its middle is tried. See docs/splitfc-rd.md, "The method", 5.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from math import exp, log, sqrt

from torch import Tensor

from flwr_splitfc.codec.quantisers.transform.code_length import estimated_bits
from flwr_splitfc.codec.quantisers.transform.dead_zone import coarsest_step
from flwr_splitfc.codec.quantisers.transform.sampling import (
    exceeded_magnitude,
    spread_rows,
)

_FILL = 0.985
"""The share of the budget that is aimed at, so that a small error is not above it."""

_ENOUGH = 0.95
"""The share of the budget with which a payload is good enough."""

_TOLERANCE = 0.05
"""The relative error of the estimated bits with which the estimates end."""

_MOST_ESTIMATES = 4

_MOST_PAYLOADS = 6
"""More only where none of them is tolerable."""

_TOLERABLE = 0.5
"""The share of the budget with which a payload is, where better ones are rare."""

_CLOSE = 1.001
"""Where steps are too fine and too coarse that differ by less, none is right."""

_NONZERO_BITS = 5.2
"""About what a coefficient that is not zero takes, for a first guess."""

_FIRST_POWER = 1.8
"""p before two steps were tried."""

_LEAST_POWER = 0.1
"""With b bits for each coefficient, p is about ``1 / (b ln 2)``."""

_MOST_POWER = 6.0

_MOST_MOVE = 2.3
"""Logarithm of a factor; beyond ten times a step, p is another."""

_MOST_RATIO = 4.0
"""A step's bits count as at most 4 times the wanted ones, and as at least a fourth."""

_LEAST_MOVE = 0.05
"""Logarithm of a factor; two steps that are nearer to each other do not tell p."""


class StepSearch:
    """The secant method for a step whose code has a wanted length.

    Parameters
    ----------
    step : float
        The first step to try.

    Attributes
    ----------
    step : float
        The step to try next; another may be put in its place before `correct`.

    Examples
    --------
    >>> search = StepSearch(1.0)
    >>> for _ in range(4):
    ...     bits = 1000 * search.step**-1.5
    ...     search.correct(bits / 2000)
    >>> round(1000 * search.step**-1.5)
    2000
    """

    def __init__(self, step: float) -> None:
        self.step = step
        self._power = _FIRST_POWER
        self.forget()

    def forget(self) -> None:
        """Forget the steps before, as where bits are counted in another way now."""
        # logarithms of a step and of its ratio
        self._before: tuple[float, float] | None = None

    def correct(self, ratio: float) -> None:
        """Move on from the step, which takes `ratio` times the bits that are wanted."""
        clipped = _clip(ratio, 1 / _MOST_RATIO, _MOST_RATIO)
        excess = log(clipped)
        self._learn(log(self.step), excess)
        move = _clip(excess / self._power, -_MOST_MOVE, _MOST_MOVE)
        self.step *= exp(move)

    def _learn(self, log_step: float, excess: float) -> None:
        """Tell p from this step and the one before."""
        if self._before is not None:
            log_before, excess_before = self._before
            moved = log_step - log_before
            if abs(moved) < _LEAST_MOVE:
                # this tells no power, but whether less than half of the way was made
                if excess * excess_before > excess_before**2 / 2:
                    self._power = max(self._power / 2, _LEAST_POWER)
                return
            power = (excess_before - excess) / moved
            self._power = _clip(power, _LEAST_POWER, _MOST_POWER)
        self._before = log_step, excess


def estimated_search(values: Tensor, largest: float, budget_bits: float) -> StepSearch:
    """Start a search at the step for which the estimate of the bits is right.

    Parameters
    ----------
    values : Tensor of shape (B, C, f)
    largest : float
        The largest of their magnitudes; the step where the budget pays for nothing.
    budget_bits : float
        For margins and coefficients; may be negative.
    """
    goal_bits = _FILL * budget_bits
    # a step with which about as many coefficients are not zero as are affordable
    some = spread_rows(values)
    share = len(some) / len(values)
    affordable = int(share * goal_bits / _NONZERO_BITS)
    if affordable < 1:
        return StepSearch(largest)
    guess = coarsest_step(exceeded_magnitude(some, affordable))
    search = StepSearch(guess or largest)
    for _ in range(_MOST_ESTIMATES):
        some_bits = estimated_bits(some, search.step)
        ratio = some_bits / share / goal_bits
        search.correct(ratio)
        if abs(ratio - 1) < _TOLERANCE:
            break
    if share < 1:
        # some rows have not quite their share of the bits
        search.forget()
        all_bits = estimated_bits(values, search.step)
        search.correct(all_bits / goal_bits)
    return search


def largest_payload(
    search: StepSearch,
    pack: Callable[[float], bytes],
    largest: float,
    finest_step: float,
    budget_bytes: int,
) -> bytes:
    """Pack with the steps of a search, and return the largest payload in the budget.

    Parameters
    ----------
    search : StepSearch
    pack : callable
        Makes the payload with a step.
    largest : float
        The largest magnitude of the values.
    finest_step : float
        The least step that is allowed.
    budget_bytes : int

    Returns
    -------
    bytes
        Empty if no payload that was tried is within the budget.
    """
    best = b""
    too_fine = 0.0
    # nothing would be left of the values
    too_coarse = coarsest_step(largest)
    search.step = min(search.step, largest)
    # the lengths that follow are no estimates
    search.forget()
    for tries in count(1):
        is_finest = search.step <= finest_step
        step = search.step = max(search.step, finest_step)
        data = pack(step)
        if len(data) > budget_bytes:
            too_fine = step
        else:
            too_coarse = step
            best = max(best, data, key=len)
            # a finer step, with a larger payload, is not allowed
            if is_finest or len(data) >= _ENOUGH * budget_bytes:
                break
        in_time = tries < _MOST_PAYLOADS
        is_hopeless = too_coarse < _CLOSE * too_fine
        is_tolerable = len(best) >= _TOLERABLE * budget_bytes
        if not in_time and (is_tolerable or is_hopeless):
            break
        goal_bytes = max(_FILL * budget_bytes, 1)
        search.correct(len(data) / goal_bytes)
        is_between = too_fine < search.step < too_coarse
        if not (in_time and is_between):
            # the power law failed: halve the interval, in logarithms
            search.step = sqrt(too_fine * too_coarse)
    return best


def _clip(value: float, least: float, most: float) -> float:
    return min(max(value, least), most)
