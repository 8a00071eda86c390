"""Which entries are sent: the threshold and the ties that a budget pays for."""

from __future__ import annotations

from bisect import bisect_left
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flwr_splitfc.codec.quantisers.mask.header import MASK_TOP
from flwr_splitfc.codec.quantisers.mask.magnitude_counts import (
    SIGN,
    MagnitudeCounts,
    third_bounds,
)


class Choice(NamedTuple):
    """Which entries are sent.

    Parameters
    ----------
    threshold : int
        The least magnitude that is sent, as the bits of a float16.
    ties : int
        How many of the entries with that magnitude are sent: positive ones before
        negative ones, in their order.
    is_smallest : bool
        Whether no other choice makes a smaller payload.
    """

    threshold: int
    ties: int
    is_smallest: bool

    def symbols(self, halves: NDArray[np.float16]) -> NDArray[np.uint8]:
        """Return the mask's symbol of each entry."""
        bits = halves.view(np.uint16)
        symbols = self._symbols_by_bits().take(bits)
        positive = np.flatnonzero(bits == self.threshold)
        negative = np.flatnonzero(bits == self.threshold + SIGN)
        at_threshold = np.concatenate([positive, negative])
        sent = at_threshold[: self.ties]
        symbols[sent] = MASK_TOP
        return symbols

    def _symbols_by_bits(self) -> NDArray[np.uint8]:
        """Return the symbol of each float16; at the threshold, that of 2 thirds."""
        threshold = np.array([self.threshold])
        (one,), (two,) = third_bounds(threshold)
        beyond = self.threshold + 1
        by_sign = np.full((2, SIGN), MASK_TOP, np.uint8)
        by_sign[:, :one] = 0
        by_sign[:, one:two] = [[1], [3]]
        by_sign[:, two:beyond] = [[2], [4]]
        return by_sign.ravel()


def choose(counts: MagnitudeCounts, budget_bytes: int) -> Choice:
    """Choose as many entries as the budget pays for, or the smallest payload."""
    is_affordable = counts.least_bytes <= budget_bytes
    if not is_affordable.any():
        smallest = np.argmin(counts.least_bytes)
        threshold = int(counts.thresholds[smallest])
        return Choice(threshold, ties=1, is_smallest=True)
    # the least threshold sends the most
    first_affordable = np.argmax(is_affordable)
    threshold = int(counts.thresholds[first_affordable])
    ties = _affordable_ties(counts, threshold, budget_bytes)
    return Choice(threshold, ties, is_smallest=False)


def _affordable_ties(counts: MagnitudeCounts, threshold: int, budget_bytes: int) -> int:
    """Return how many entries at the threshold the budget pays for, at least one."""
    only = np.array([threshold])

    def is_too_long(ties: int) -> bool:
        (size,) = counts.payload_bytes(only, np.array([ties]))
        return bool(size > budget_bytes)

    # payloads grow with the ties: so many come before the first that is too long
    most = int(counts.counts[threshold])
    return bisect_left(range(1, most + 1), True, key=is_too_long)
