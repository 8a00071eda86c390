"""The search for the step with which a payload takes its budget.

Near a step, the bits fall about as a power of it, ``bits ~ step^-p``. So where a step
takes ``e^excess`` times the bits that are wanted, the step to try next is::

    step * e^(excess / p)

Of two steps that were tried, the second e^moved times as large, ``p = (excess of the
first - excess of the second) / moved``: the secant method, in logarithms.

First, the bits are estimated (`code_length`), which is fast, on some of the rows and
then on all. Then payloads are packed, mostly one or two. See docs/splitfc-rd.md, "The
method", 5.
"""

from __future__ import annotations

from collections.abc import Callable
from math import exp, inf, log, sqrt

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

_NONZERO_BITS = 5.2
"""About what a coefficient that is not zero takes, for a first guess."""

_FIRST_POWER = 1.8
"""p before two steps were tried."""

_LEAST_POWER = 0.6
_MOST_POWER = 6.0

_MOST_RATIO = 4.0
"""A step's bits count as at most 4 times the wanted ones, and as at least a fourth."""

_LEAST_MOVE = 0.1
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
        The step to try next.

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
        # of the step before, and from that to this one
        self._excess = 0.0
        self._moved = 0.0

    def correct(self, ratio: float) -> None:
        """Move on from a step that takes `ratio` times the bits that are wanted."""
        clipped = _clip(ratio, 1 / _MOST_RATIO, _MOST_RATIO)
        excess = log(clipped)
        # p from this step and the one before
        if abs(self._moved) > _LEAST_MOVE:
            power = (self._excess - excess) / self._moved
            self._power = _clip(power, _LEAST_POWER, _MOST_POWER)
        self._excess = excess
        self._moved = excess / self._power
        self.step *= exp(self._moved)


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
        all_bits = estimated_bits(values, search.step)
        search.correct(all_bits / goal_bits)
    return search


def largest_payload(
    search: StepSearch,
    pack: Callable[[float], bytes],
    finest_step: float,
    budget_bytes: int,
) -> bytes:
    """Pack with the steps of a search, and return the largest payload in the budget.

    Parameters
    ----------
    search : StepSearch
    pack : callable
        Makes the payload with a step.
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
    too_coarse = inf
    for _ in range(_MOST_PAYLOADS):
        step = max(search.step, finest_step)
        data = pack(step)
        if len(data) > budget_bytes:
            too_fine = step
        else:
            too_coarse = step
            best = max(best, data, key=len)
            # a finer step, with a larger payload, is not allowed
            is_finest = step > search.step
            if is_finest or len(data) >= _ENOUGH * budget_bytes:
                break
        goal_bytes = max(_FILL * budget_bytes, 1)
        search.correct(len(data) / goal_bytes)
        if not too_fine < search.step < too_coarse:
            # the power law failed: halve the interval, in logarithms
            search.step = sqrt(too_fine * too_coarse)
    return best


def _clip(value: float, least: float, most: float) -> float:
    return min(max(value, least), most)
