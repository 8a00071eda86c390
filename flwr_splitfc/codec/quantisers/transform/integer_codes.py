"""Codes for integers: each makes runs of symbols, which a range coder then packs.

Bits
    A value of known width, 0 to 32 bits, all values as likely: its high bits beyond 16,
    then the others.
Escape
    Exp-Golomb: for a value v from 0, the width ``k = floor(log2(v + 1))``, then as bits
    ``v + 1 - 2^k``.
Signed
    Small integers about zero: two parameters of a model that is zero-inflated and
    geometric (`models.signed_model`), then magnitudes, then signs.

Each code has a writer, which yields runs, and a reader. See docs/wire-format.md,
section 14, "Three codes for integers".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flwr_splitfc.codec.arrays import Ints, Symbols
from flwr_splitfc.codec.format.symbols import Model, SymbolReader
from flwr_splitfc.codec.quantisers.transform.models import (
    NONZERO_SHARES,
    RATIOS,
    nonzero_share_index,
    ratio_index,
    signed_model,
)

Run: TypeAlias = tuple[Symbols, Model]
"""Symbols and what their probabilities are."""

_LOW_BITS = 16
"""A symbol carries at most so many bits; wider values take two."""

_LOW_MASK = 2**_LOW_BITS - 1

_ESCAPE_WIDTHS = 32
"""Symbols for the width of an escaped value, which is below ``2^32 - 1``."""

_SIGNED_PARAMETERS = np.array([NONZERO_SHARES, RATIOS], dtype=np.int32)
"""Levels of the two parameters that precede signed integers."""


def symbol_runs(values: NDArray[Any], levels: Model) -> Iterator[Run]:
    """Yield the values as they are, in one run; nothing where there are none."""
    if len(values):
        yield values.astype(np.int32), levels


def read_integers(reader: SymbolReader, count: int, levels: Model) -> Ints:
    """Read symbols as integers that are wide enough to compute with."""
    return reader.read(count, levels).astype(np.int64)


def bit_widths(values: Ints) -> Ints:
    """Return the number of binary digits of each value, from 0 to ``2^53 - 1``.

    >>> bit_widths(np.array([0, 1, 2, 255, 256])).tolist()
    [0, 1, 2, 8, 9]
    """
    doubles = values.astype(np.float64)
    _, exponents = np.frexp(doubles)
    return exponents.astype(np.int64)


# Bits


def bit_runs(values: Ints, widths: Ints) -> Iterator[Run]:
    """Yield non-negative values of the given widths, 0 to 32 bits each."""
    high = values >> _LOW_BITS
    low = values & _LOW_MASK
    yield from _narrow_runs(high, _high_widths(widths))
    yield from _narrow_runs(low, _low_widths(widths))


def read_bits(reader: SymbolReader, widths: Ints) -> Ints:
    """Read what `bit_runs` wrote."""
    high = _read_narrow(reader, _high_widths(widths))
    low = _read_narrow(reader, _low_widths(widths))
    values: Ints = high << _LOW_BITS | low
    return values


def _high_widths(widths: Ints) -> Ints:
    return np.maximum(widths - _LOW_BITS, 0)


def _low_widths(widths: Ints) -> Ints:
    return np.minimum(widths, _LOW_BITS)


def _narrow_runs(values: Ints, widths: Ints) -> Iterator[Run]:
    """Yield values of at most 16 bits, leaving out those without any."""
    sent = widths > 0
    levels = _levels(widths[sent])
    yield from symbol_runs(values[sent], levels)


def _read_narrow(reader: SymbolReader, widths: Ints) -> Ints:
    """Read what `_narrow_runs` wrote; what was left out is 0."""
    sent = widths > 0
    levels = _levels(widths[sent])
    values = np.zeros_like(widths)
    values[sent] = read_integers(reader, len(levels), levels)
    return values


def _levels(widths: Ints) -> Symbols:
    return (1 << widths).astype(np.int32)


# Escape


def escape_runs(values: Ints) -> Iterator[Run]:
    """Yield values from 0 to ``2^32 - 2``: all widths first, then all low bits."""
    from_one = values + 1
    widths = bit_widths(from_one) - 1
    yield from symbol_runs(widths, _ESCAPE_WIDTHS)
    highest = 1 << widths
    yield from bit_runs(from_one - highest, widths)


def read_escapes(reader: SymbolReader, count: int) -> Ints:
    """Read what `escape_runs` wrote."""
    widths = read_integers(reader, count, _ESCAPE_WIDTHS)
    highest = 1 << widths
    from_one = highest + read_bits(reader, widths)
    return from_one - 1


# Signed


def signed_runs(values: Ints, most: int) -> Iterator[Run]:
    """Yield small integers about zero, of magnitudes up to `most`; at least one."""
    magnitudes = np.abs(values)
    is_nonzero = magnitudes > 0
    nonzeros = magnitudes[is_nonzero]
    count = len(nonzeros)
    excess = int(nonzeros.sum()) - count
    share = nonzero_share_index(count, len(values))
    ratio = ratio_index(count, excess)
    parameters = np.array([share, ratio])
    yield from symbol_runs(parameters, _SIGNED_PARAMETERS)
    model = signed_model(share, ratio, most + 1)
    yield from symbol_runs(magnitudes, model)
    # a zero has no sign
    is_negative = values[is_nonzero] < 0
    yield from symbol_runs(is_negative, 2)


def read_signed(reader: SymbolReader, count: int, most: int) -> Ints:
    """Read what `signed_runs` wrote, at least one value."""
    share, ratio = reader.read(2, _SIGNED_PARAMETERS).tolist()
    model = signed_model(share, ratio, most + 1)
    values = read_integers(reader, count, model)
    is_nonzero = values > 0
    nonzeros = int(is_nonzero.sum())
    is_negative = read_integers(reader, nonzeros, 2)
    signs = 1 - 2 * is_negative
    values[is_nonzero] *= signs
    return values
