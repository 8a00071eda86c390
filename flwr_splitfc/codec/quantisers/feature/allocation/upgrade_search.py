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

from typing import NamedTuple

import numpy as np

from flwr_splitfc.codec.arrays import Doubles, Ints
from flwr_splitfc.codec.compiled import compiled
from flwr_splitfc.codec.format.symbols import level_bits
from flwr_splitfc.codec.quantisers.feature.header import NO_UPGRADES, Upgrades
from flwr_splitfc.codec.quantisers.feature.upgrades import column_levels, upgrade_order

_MOST_GIVEN_BACK, _MOST_SKIPPED = 15, 31
_MOST_MORE = 255
"""What the header's field holds."""


class _Queue(NamedTuple):
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
    levels = column_levels(spans, multiplier, NO_UPGRADES)
    order = upgrade_order(spans, multiplier)
    return _best_upgrades(spans, levels, order, rows, bits_available, level_bits())


@compiled
def _best_upgrades(
    spans: Ints,
    levels: Ints,
    order: Ints,
    rows: int,
    bits_available: float,
    level_bits: Doubles,
) -> Upgrades:
    row_bits = 0.0
    for level in levels:
        row_bits += level_bits[level]
    bits_left = bits_available - rows * row_bits
    queue = _queue(spans[order], levels[order], rows, level_bits)
    return _best_exchange(queue, bits_left)


@compiled
def _queue(spans: Ints, levels: Ints, rows: int, level_bits: Doubles) -> _Queue:
    """Queue the upgrades of columns that are in order."""
    bits = np.zeros(len(spans) + 1)
    gains = np.zeros(len(spans) + 1)
    for k, span in enumerate(spans):
        level = levels[k]
        # left side of (9)
        bits[k + 1] = bits[k] + rows * (level_bits[level + 1] - level_bits[level])
        # first term of (10)
        removed = 1 / (level - 1.0) ** 2 - 1.0 / level**2
        gains[k + 1] = gains[k] + span**2 * removed
    return _Queue(bits, gains)


@compiled
def _best_exchange(queue: _Queue, bits_left: float) -> Upgrades:
    """Try to give back up to 15 of the first that fit, and to skip up to 31."""
    last = len(queue.bits) - 1
    fitting = _affordable(queue.bits, bits_left)
    best = Upgrades(fitting, 0, 0)
    most_gain = -np.inf
    for given_back in range(min(fitting, _MOST_GIVEN_BACK) + 1):
        first = fitting - given_back
        for skipped in range(_MOST_SKIPPED + 1):
            resume = min(first + skipped, last)
            # the bits of the skipped ones are there for those after them
            bits_reached = queue.bits[resume] + bits_left - queue.bits[first]
            following = queue.bits[resume : resume + _MOST_MORE + 1]
            more = _affordable(following, bits_reached)
            gain = queue.gains[first] + queue.gains[resume + more]
            gain -= queue.gains[resume]
            # at a tie, the one that gives back and skips the least
            if gain > most_gain:
                most_gain = gain
                best = Upgrades(first, skipped, more)
    if best.skipped == 0 or best.more == 0:
        # nothing is gained from giving back and taking the same again
        return Upgrades(fitting, 0, 0)
    return best


@compiled
def _affordable(bits: Doubles, available: float) -> int:
    """How many of the first upgrades so many bits pay for."""
    fitting = int(np.searchsorted(bits, available, side="right")) - 1
    return max(fitting, 0)
