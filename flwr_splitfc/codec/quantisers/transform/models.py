"""How probable symbols are: geometric models with few parameters.

A probability is a whole number of units of 2^-24, at least 1, and those of a model add
up to 2^24. All is computed in integers, so sender and receiver have the same models.
Integers v = 0, 1, 2, ... that become rarer by the ratio p have::

    P(v) = (1 - p) p^v

A sender chooses p and sends its index. There are three uses.

Magnitudes m of coefficients that are not zero: ``v = m - 1``. The mean of v is
``p / (1 - p)``, so p is estimated as ``excess / (excess + count)``, where the excess is
the sum of v. Index q stands for ``p = (q + 1) / 33``.

Gaps of zeros before a coefficient that is not zero: of `size` coefficients `count` are
not zero, so a gap goes on with ``p = (size - count) / size``. Of a long gap the S low
bits are nearly even and are sent as they are; what remains, ``gap >> S``, has the ratio
``p^(2^S)``. Index g stands for ``(2 g + 1) / 128``. Both sides know count and size, so
neither S nor g is sent.

Signed integers: zero with probability ``1 - (z + 1) / 65``, and the others with
magnitudes as above.

See docs/wire-format.md, section 14, "Signed" and "Pairs".
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from constriction import stream

from flwr_splitfc.codec.format.symbols import SYMBOL_PRECISION_BITS, sized_model

MAGNITUDES = 15
"""Symbols of a magnitude, from 1; the last is for larger ones, too."""

GAPS = 32
"""Symbols of a gap without its low bits, from 0; the last is for longer ones, too."""

RATIOS = 32
"""Indices q of the ratio by which magnitudes become rarer, ``(q + 1) / 33``."""

NONZERO_SHARES = 64
"""Indices z of the share of signed integers that are not zero, ``(z + 1) / 65``."""

GAP_RATIOS = 64
"""Indices g of the ratio by which gaps become rarer, ``(2 g + 1) / 128``."""

MOST_SHIFT = 22
"""Low bits of a gap, S, at most."""

_WHOLE: int = 2**SYMBOL_PRECISION_BITS
"""Probability 1."""


# Parameters


def ratio_index(count: int, excess: int) -> int:
    """Return q for so many magnitudes, which exceed 1 by so much in all.

    >>> ratio_index(10, excess=0), ratio_index(10, excess=10), ratio_index(1, excess=99)
    (0, 15, 31)
    """
    whole = max(excess + count, 1)
    return _nearest_index(excess, whole, RATIOS)


def nonzero_share_index(nonzeros: int, count: int) -> int:
    """Return z for `count` signed integers of which so many are not zero."""
    return _nearest_index(nonzeros, count, NONZERO_SHARES)


def gap_shift(count: int, size: int) -> int:
    """Return S, where `count` of `size` coefficients are not zero.

    ``2^S`` is between one and two thirds of the mean distance of two of them, or 1.

    >>> gap_shift(1, 2), gap_shift(1, 4), gap_shift(10, 1000)
    (0, 1, 6)
    """
    third = size // (3 * count)
    return min(MOST_SHIFT, third.bit_length())


def gap_index(count: int, size: int, shift: int) -> int:
    """Return g, where `count` of `size` coefficients are not zero, for S of these."""
    # p = (size - count) / size
    zeros = size - count
    goes_on = zeros * _WHOLE // size
    for _ in range(shift):
        # a square in fixed-point numbers, so that S of them make the power 2^S
        goes_on = goes_on * goes_on >> SYMBOL_PRECISION_BITS
    return goes_on * GAP_RATIOS >> SYMBOL_PRECISION_BITS


# Models


@lru_cache
def signed_model(nonzero_share: int, ratio: int, symbols: int) -> stream.model.Model:
    """Return the model of magnitudes of signed integers.

    Parameters
    ----------
    nonzero_share, ratio : int
        The indices z and q.
    symbols : int
        The largest magnitude, plus 1.
    """
    # not zero with probability (z + 1) / 65
    part = nonzero_share + 1
    nonzero = _WHOLE * part // (NONZERO_SHARES + 1)
    zero = _WHOLE - nonzero
    magnitudes = _magnitude_pieces(nonzero, ratio, symbols - 1)
    sizes = np.array([zero, *magnitudes])
    return sized_model(sizes)


# as many as there are indices, twice over
@lru_cache(4096)
def pair_model(gap: int, ratio: int) -> stream.model.Model:
    """Return the model of ``15 gap + magnitude - 1``, by the indices g and q."""
    # a gap goes on with probability (2 g + 1) / 128
    parts = 2 * GAP_RATIOS
    goes_on = 2 * gap + 1
    ends = parts - goes_on
    gaps = _geometric_pieces(_WHOLE, ends, parts, GAPS)
    magnitudes = _magnitude_pieces(_WHOLE, ratio, MAGNITUDES)
    # gaps and magnitudes are independent: probabilities multiply
    products = np.outer(gaps, magnitudes).ravel()
    probabilities = products >> SYMBOL_PRECISION_BITS
    sizes = np.maximum(probabilities, 1)
    # what rounding has left over or taken goes to the most probable symbol
    sizes[0] += _WHOLE - sizes.sum()
    return sized_model(sizes)


def _nearest_index(part: int, whole: int, indices: int) -> int:
    """Return i with ``(i + 1) / (indices + 1)`` nearest to ``part / whole``."""
    steps = indices + 1
    nearest = round(steps * part / whole) - 1
    last = indices - 1
    return min(max(nearest, 0), last)


def _magnitude_pieces(whole: int, ratio: int, symbols: int) -> list[int]:
    """Share a probability out among magnitudes from 1, by the index q."""
    # a magnitude goes on with probability (q + 1) / 33
    parts = RATIOS + 1
    goes_on = ratio + 1
    ends = parts - goes_on
    return _geometric_pieces(whole, ends, parts, symbols)


def _geometric_pieces(whole: int, part: int, parts: int, symbols: int) -> list[int]:
    """Share `whole` out: to each symbol ``part / parts`` of what is left.

    The last symbol gets all that is left, and none gets nothing.

    >>> _geometric_pieces(16, 1, 2, symbols=4)
    [8, 4, 2, 2]
    >>> _geometric_pieces(4, 1, 1, symbols=4)
    [1, 1, 1, 1]
    """
    pieces = []
    left = whole
    for symbols_after in reversed(range(1, symbols)):
        wanted = left * part // parts
        # a unit for each symbol that comes later
        most = left - symbols_after
        piece = min(max(wanted, 1), most)
        pieces.append(piece)
        left -= piece
    return [*pieces, left]
