"""How many coefficients of each context are not zero, and how that is sent.

Of a context of `size` coefficients, the count n is 0 to `size`. It is sent as its
number of binary digits, all as likely, and the digits below the highest, which is a 1.
See docs/wire-format.md, section 14, "counts".
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from flwr_splitfc.codec.arrays import Ints, Symbols
from flwr_splitfc.codec.errors import PayloadError
from flwr_splitfc.codec.format.bits import (
    Run,
    bit_runs,
    read_bits,
    read_integers,
    symbol_runs,
)
from flwr_splitfc.codec.format.symbols import SymbolReader
from flwr_splitfc.codec.quantisers.transform.integer_codes import bit_widths


def count_runs(counts: Ints, sizes: Ints) -> Iterator[Run]:
    """Yield the counts of all contexts that have coefficients."""
    used = sizes > 0
    sent = counts[used]
    widths = bit_widths(sent)
    yield from symbol_runs(widths, _width_levels(sizes[used]))
    low_widths = _below_the_highest(widths)
    low_digits = sent & (1 << low_widths) - 1
    yield from bit_runs(low_digits, low_widths)


def read_counts(reader: SymbolReader, sizes: Ints) -> Ints:
    """Read the counts that `count_runs` wrote, 0 for contexts without coefficients.

    Raises
    ------
    PayloadError
        If a count is above the context's size.
    """
    used = sizes > 0
    levels = _width_levels(sizes[used])
    widths = read_integers(reader, len(levels), levels)
    low_widths = _below_the_highest(widths)
    # a count of 0 has no highest digit
    highest_digit = (widths > 0) << low_widths
    low_digits = read_bits(reader, low_widths)
    counts = np.zeros_like(sizes)
    counts[used] = highest_digit | low_digits
    if bool((counts > sizes).any()):
        raise PayloadError("a context has more coefficients than entries")
    return counts


def _width_levels(sizes: Ints) -> Symbols:
    """Return how many widths a count may have, 0 digits included."""
    widths = bit_widths(sizes)
    return (widths + 1).astype(np.int32)


def _below_the_highest(widths: Ints) -> Ints:
    return np.maximum(widths - 1, 0)
