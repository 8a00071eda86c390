"""Integers that are coded by how often each value occurs.

First comes which values occur, then how often each does, and then the integers, range-
coded with these counts as probabilities. Sorted, n integers are a run of each of their
k values. Where the runs but the last end says how long they are: these are k - 1 of the
places after the first n - 1 integers. So both are sets of columns.

The counts and the integers together are a two-part code. An adaptive code sends no
counts: it codes each integer by the counts of those before it, each plus 1. In all that
takes ::

    log2 C(n + k - 1, k - 1) + log2 n! / (n_1! ... n_k!)  bits:

one of all possible counts, and then one of all orders that have these counts. Without
knowing more of the integers there is nothing to save. The two parts here are somewhat
longer: a set takes up to two bits a value too many, and for the order the integers take
``n H``, with the entropy H of the counts, which is too much by about half of
``log2(2 pi n_i)`` for each value but one. For 256 labels of 10 classes these are five
of 112 bytes. In return all integers have one model and are coded by one call, where an
adaptive code needs a model and a call for each.
"""

from __future__ import annotations

from math import ceil, log2

import numpy as np

from flwr_splitfc.codec.arrays import Ints, Symbols
from flwr_splitfc.codec.errors import PayloadError
from flwr_splitfc.codec.format.column_sets import (
    column_set_bytes,
    pack_columns,
    unpack_columns,
)
from flwr_splitfc.codec.format.symbols import (
    ExactSymbolReader,
    pack_words,
    weighted_model,
)

MOST_COUNTED = 2**23
"""Most integers that are coded so."""

_MOST_VALUES = 2**16 - 1
_ROUNDING_BITS = 1e-2  # more than sums of 2^23 integers' logarithms are off by


def least_counted_bytes(counts: Ints) -> int:
    """Return the bytes that `pack_counted` takes at least.

    The sets take what they take. The integers have ``n H`` bits, of which the coder
    holds fewer than 32 back until the end, when it writes a word or two.

    Parameters
    ----------
    counts : Ints
        How often each integer from 0 occurs; the last one is above 0.
    """
    counts_of_values: list[int] = counts[counts > 0].tolist()
    values = len(counts_of_values)
    integers = sum(counts_of_values)
    which_bytes = column_set_bytes(values, len(counts))
    how_often_bytes = column_set_bytes(values - 1, integers - 1)
    # n H = n log2 n - sum n_i log2 n_i
    bits = integers * log2(integers)
    for count in counts_of_values:
        bits -= count * log2(count)
    words = ceil((bits - _ROUNDING_BITS) / 32)
    return which_bytes + how_often_bytes + 4 * words


def pack_counted(integers: Symbols, counts: Ints) -> tuple[int, bytes]:
    """Write integers from 0, at least one.

    Parameters
    ----------
    integers : Symbols
    counts : Ints
        How often each integer from 0 occurs; the last one is above 0.

    Returns
    -------
    int
        How many different values there are.
    bytes
    """
    levels = len(counts)
    values = np.flatnonzero(counts)
    counts_of_values = counts[values]
    which = pack_columns(values, levels)
    if len(values) == 1:
        return 1, which
    run_ends = counts_of_values.cumsum()[:-1]
    how_often = pack_columns(run_ends - 1, len(integers) - 1)
    ranks = integers
    if len(values) < levels:
        rank_by_level = np.cumsum(counts > 0, dtype=np.int32) - 1
        ranks = rank_by_level[integers]
    words = pack_words([(ranks, weighted_model(counts_of_values))])
    return len(values), which + how_often + words


def unpack_counted(data: memoryview, count: int, levels: int, values: int) -> Ints:
    """Read `count` integers below `levels`, at least one, of so many values.

    Raises
    ------
    PayloadError
        If the bytes are none that `pack_counted` writes.
    """
    if count > MOST_COUNTED:
        raise PayloadError(
            f"{count} integers are coded by their counts; at most {MOST_COUNTED} may be"
        )
    if not 1 <= values <= min(count, levels, _MOST_VALUES):
        raise PayloadError(f"{count} integers below {levels} take {values} values")
    which, rest = unpack_columns(data, values, levels)
    run_ends, words = unpack_columns(rest, values - 1, count - 1)
    if values == 1:
        if words:
            raise PayloadError(f"{len(words)} bytes follow the only value")
        return np.repeat(which, count)
    counts = np.diff(run_ends, prepend=-1, append=count - 1)
    reader = ExactSymbolReader(words)
    ranks = reader.read(count, weighted_model(counts))
    reader.close()
    if not np.array_equal(np.bincount(ranks, minlength=values), counts):
        raise PayloadError("values do not occur as often as their counts say")
    return which[ranks]
