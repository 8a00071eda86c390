"""How many entries each threshold sends, and what the mask then costs.

Let t be the smallest magnitude that is sent, the threshold. An entry x that is not sent
becomes the nearest of 0, t/3 and 2t/3, with its sign. With bounds of t/6 and t/2, its
symbol is::

    0       |x| <= t/6
    1, 3    t/6 < |x| < t/2, positive or negative
    2, 4    t/2 <= |x|

Entries of magnitude t may be too many for the budget. `ties` says how many of them are
sent, positive ones first.

A symbol that n of N entries have takes about log2(N / n) bits each, so a payload has::

    bits = 16 * (entries sent) + sum over symbols of n log2(N / n)

All this needs of the entries is how many there are of each float16 magnitude, by sign.
Positive float16 numbers have the order of their bits, so a magnitude is known by its
bits here. See Zhou et al. (2408.13787) and docs/wire-format.md, section 13.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from flwr_splitfc.codec.arrays import Doubles, Ints
from flwr_splitfc.codec.format.symbols import stream_bytes
from flwr_splitfc.codec.quantisers.mask.header import mask_bytes

FINITE_MAGNITUDES = 0x7C00
"""Finite float16 magnitudes: their bits are 0 to this less 1."""

SIGN = 0x8000
"""The bit of a negative float16."""


@dataclass(frozen=True, eq=False)
class MagnitudeCounts:
    """How many entries are below each float16 magnitude, by sign.

    Parameters
    ----------
    below : ndarray of shape (2, magnitudes + 1)
        Positive entries, then negative ones.
    """

    below: Ints

    @classmethod
    def of(cls, halves: NDArray[np.float16]) -> MagnitudeCounts:
        """Count finite entries, of which none is -0."""
        bits = halves.view(np.uint16)
        by_bits = np.bincount(bits, minlength=2 * SIGN)
        by_sign = by_bits.reshape(2, SIGN)
        finite = by_sign[:, :FINITE_MAGNITUDES]
        below = np.zeros((2, FINITE_MAGNITUDES + 1), np.int64)
        np.cumsum(finite, axis=1, out=below[:, 1:])
        return cls(below)

    @cached_property
    def entries(self) -> int:
        """All entries, ``N``."""
        return int(self.below[:, -1].sum())

    @cached_property
    def counts(self) -> Ints:
        """How many entries have each magnitude, of either sign."""
        below: Ints = self.below.sum(0)
        return np.diff(below)

    @cached_property
    def thresholds(self) -> Ints:
        """Magnitudes that occur, ascending: not 0, unless there is nothing else."""
        present = np.flatnonzero(self.counts)
        largest = present[-1]
        if largest == 0:
            return present
        return present[present > 0]

    @cached_property
    def least_bytes(self) -> Doubles:
        """The payload with each of the thresholds, and a single entry there."""
        single_tie = np.ones_like(self.thresholds)
        return self.payload_bytes(self.thresholds, single_tie)

    def payload_bytes(self, thresholds: Ints, ties: Ints) -> Doubles:
        """Return bytes that are enough for the payloads, but for rare cases."""
        entries = self.entries
        counts = self.symbol_counts(thresholds, ties)
        # a symbol that does not occur takes no bits
        at_least_one = np.maximum(counts, 1)
        bits_each = np.log2(entries / at_least_one)
        bits = (counts * bits_each).sum(0).tolist()
        sent = counts[-1].tolist()
        sizes = []
        for own_sent, own_bits in zip(sent, bits, strict=True):
            stream = stream_bytes(entries, own_bits / entries)
            sizes.append(mask_bytes(own_sent) + stream)
        return np.array(sizes)

    def symbol_counts(self, thresholds: Ints, ties: Ints) -> Ints:
        """Return how often each symbol occurs, (6, thresholds)."""
        ones, twos = third_bounds(thresholds)
        beyond = thresholds + 1
        positive, negative = self.below
        positive_there = positive[beyond] - positive[thresholds]
        positive_ties = np.minimum(ties, positive_there)
        negative_ties = ties - positive_ties
        zeros = self.below[:, ones].sum(0)
        positive_twos = positive[beyond] - positive[twos]
        negative_twos = negative[beyond] - negative[twos]
        not_larger = self.below[:, beyond].sum(0)
        larger = self.entries - not_larger
        return np.stack(
            [
                zeros,
                positive[twos] - positive[ones],
                positive_twos - positive_ties,
                negative[twos] - negative[ones],
                negative_twos - negative_ties,
                larger + ties,
            ]
        )


def third_bounds(thresholds: Ints) -> tuple[Ints, Ints]:
    """Return the first magnitudes that become 1 and 2 thirds of each threshold.

    Returns
    -------
    ones, twos : ndarrays
        Bits of float16, the largest magnitude plus 1 for none.
    """
    bits = np.arange(FINITE_MAGNITUDES, dtype=np.uint16)
    halves = bits.view(np.float16)
    values = halves.astype(np.float64)
    own = values[thresholds]
    twos = np.searchsorted(values, own / 2)
    ones = np.searchsorted(values, own / 6, side="right")
    # with the smallest magnitudes, t/6 and t/2 may lie between the same two
    return np.minimum(ones, twos), twos
