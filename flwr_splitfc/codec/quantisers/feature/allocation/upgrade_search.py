"""The upgrades that remove most error with the bits that are left (SplitFC, Sec. V).

After the levels ``floor_level(m n^2)`` some bits are left for upgrades, which come in
the order of `upgrades.upgrade_order`. One more level for a column with q levels

    costs      B (log2(q + 1) - log2 q)                  bits
    removes    B n^2 / 4 (1 / (q - 1)^2 - 1 / q^2)       squared grid steps of (10)

The first ones that fit are the obvious choice. They leave up to the bits of the next
upgrade over, which is 2 % of the error with 40 columns. So a few of the last ones are
given back on trial and a few of the following skipped, and their bits go to those that
come after, which may cost less.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from flwr_splitfc.codec.arrays import Doubles, Ints
from flwr_splitfc.codec.format.symbols import level_bits
from flwr_splitfc.codec.quantisers.feature.header import Upgrades
from flwr_splitfc.codec.quantisers.feature.levels import floor_level, span_squares
from flwr_splitfc.codec.quantisers.feature.upgrades import upgrade_order

_MOST_GIVEN_BACK, _MOST_SKIPPED = 15, 31
_MOST_MORE = 255
"""What the header's field holds."""


@dataclass(frozen=True, eq=False)
class _Queue:
    """Upgrades in their order; element k of an array is the sum over the first k.

    Parameters
    ----------
    bits : ndarray
        What they cost, over all rows.
    gains : ndarray
        The error that they remove, in quarters of a squared grid step and a row.
    """

    bits: Doubles
    gains: Doubles

    @classmethod
    def of(cls, spans: Ints, levels: Ints, rows: int) -> _Queue:
        """Queue the upgrades of columns that are in order, by span and levels."""
        # left side of (9)
        bits_before = level_bits()[levels]
        bits_after = level_bits()[levels + 1]
        # first term of (10)
        gains = span_squares()[spans] * _error_removed(levels)
        return cls(
            bits=_sums_of_first(rows * (bits_after - bits_before)),
            gains=_sums_of_first(gains),
        )

    @property
    def last(self) -> int:
        """How many upgrades there are."""
        return len(self.bits) - 1

    def affordable(self, bits: ArrayLike) -> Ints:
        """How many of the first upgrades so many bits pay for."""
        fitting = self.bits.searchsorted(bits, side="right") - 1
        return np.maximum(fitting, 0)


def _error_removed(levels: Ints) -> Doubles:
    """What one level more removes, in units of a quarter of the column's square."""
    before = 1 / (levels - 1.0) ** 2
    after = 1.0 / levels**2
    return np.asarray(before - after)


def _sums_of_first(values: Doubles) -> Doubles:
    """The sums of the first k values, for k from 0 on."""
    sums = np.zeros(len(values) + 1)
    np.cumsum(values, out=sums[1:])
    return sums


def best_upgrades(
    spans: Ints, multiplier: float, rows: int, bits_available: float
) -> Upgrades:
    """Choose the upgrades for which `bits_available`, floor levels included, suffice.

    Parameters
    ----------
    spans : ndarray
        Of each two-stage column in grid steps, (M,).
    multiplier : float
        ``m``.
    rows : int
        ``B``.
    """
    squares = span_squares()[spans]
    levels = floor_level(multiplier * squares)
    # columns of one point have no entries to code
    active = spans > 0
    row_bits = level_bits()[levels[active]].sum()
    bits_left = bits_available - rows * float(row_bits)
    order = upgrade_order(spans, multiplier)
    queue = _Queue.of(spans[order], levels[order], rows)
    return _best_exchange(queue, bits_left)


@dataclass(frozen=True, eq=False)
class _Exchanges:
    """Upgrades on trial: rows by how many are given back, columns by how many skipped.

    Parameters
    ----------
    first : ndarray
        Upgrades before the skipped ones, (16, 1).
    resume, end : ndarray
        Where those after the skipped ones begin and end, (16, 32).
    """

    first: Ints
    resume: Ints
    end: Ints

    @classmethod
    def within(cls, queue: _Queue, bits_left: float) -> _Exchanges:
        """Try to give back up to 15 of the first that fit, and to skip up to 31."""
        most = int(queue.affordable(bits_left))
        given_back = np.arange(min(most, _MOST_GIVEN_BACK) + 1)
        skipped = np.arange(_MOST_SKIPPED + 1)
        first = most - given_back[:, None]
        resume = np.minimum(first + skipped, queue.last)
        # the bits of the skipped ones are there for those after them
        bits_reached = queue.bits[resume] + bits_left
        bits_reached -= queue.bits[first]
        end = queue.affordable(bits_reached)
        return cls(
            first=first, resume=resume, end=np.clip(end, resume, resume + _MOST_MORE)
        )

    @property
    def more(self) -> Ints:
        """Upgrades after the skipped ones."""
        return self.end - self.resume

    def gains(self, queue: _Queue) -> Doubles:
        """The error that each selection removes."""
        gains = queue.gains[self.first] + queue.gains[self.end]
        gains -= queue.gains[self.resume]
        return gains


def _best_exchange(queue: _Queue, bits_left: float) -> Upgrades:
    exchanges = _Exchanges.within(queue, bits_left)
    gains = exchanges.gains(queue)
    # at a tie, the one that gives back and skips the least
    best = int(np.argmax(gains))
    row, skipped = divmod(best, gains.shape[1])
    more = int(exchanges.more[row, skipped])
    if skipped == 0 or more == 0:
        # row 0 gives nothing back
        return Upgrades(first=int(exchanges.first[0, 0]))
    return Upgrades(first=int(exchanges.first[row, 0]), skipped=skipped, more=more)
