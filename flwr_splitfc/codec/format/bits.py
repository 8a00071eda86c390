"""Values of known widths as symbols, all values of a width being as likely.

Of values wider than 16 bits, the high bits beyond 16 are symbols of their own, which
precede all others. See docs/wire-format.md, section 14, "Three codes for integers".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flwr_splitfc.codec.arrays import Ints, Symbols
from flwr_splitfc.codec.format.symbols import Model, SymbolReader

Run: TypeAlias = tuple[Symbols, Model]
"""Symbols and what their probabilities are."""

Group: TypeAlias = tuple[slice, int]
"""Which of the values a group has, and their width, at least 1."""

_LOW_BITS = 16
"""A symbol carries at most so many bits; wider values take two."""

_LOW_MASK = 2**_LOW_BITS - 1


def symbol_runs(values: NDArray[Any], levels: Model) -> Iterator[Run]:
    """Yield the values as they are, in one run; nothing where there are none."""
    if len(values):
        yield values.astype(np.int32), levels


def read_integers(reader: SymbolReader, count: int, levels: Model) -> Ints:
    """Read symbols as integers that are wide enough to compute with."""
    return reader.read(count, levels).astype(np.int64)


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


def group_bit_runs(values: Ints, groups: Sequence[Group]) -> Iterator[Run]:
    """Yield what `bit_runs` does, of values that have the width of their group.

    A group has one model, with which coding is faster than with one for each value.
    """
    for own, width in groups:
        if width > _LOW_BITS:
            yield from symbol_runs(values[own] >> _LOW_BITS, 1 << width - _LOW_BITS)
    for own, width in groups:
        yield from symbol_runs(values[own] & _LOW_MASK, 1 << min(width, _LOW_BITS))


def read_group_bits(reader: SymbolReader, count: int, groups: Sequence[Group]) -> Ints:
    """Read what `group_bit_runs` wrote of so many values."""
    values = np.zeros(count, np.int64)
    for own, width in groups:
        if width > _LOW_BITS:
            levels = 1 << width - _LOW_BITS
            high = read_integers(reader, own.stop - own.start, levels)
            values[own] = high << _LOW_BITS
    for own, width in groups:
        levels = 1 << min(width, _LOW_BITS)
        values[own] += reader.read(own.stop - own.start, levels)
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
