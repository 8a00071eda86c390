"""Codes for integers: each makes runs of symbols, which a range coder then packs.

Bits
    A value of known width, 0 to 32 bits, all values as likely (`format.bits`).
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

import numpy as np

from flwr_splitfc.codec.arrays import Ints
from flwr_splitfc.codec.format.bits import (
    Run,
    bit_runs,
    read_bits,
    read_integers,
    symbol_runs,
)
from flwr_splitfc.codec.format.symbols import SymbolReader
from flwr_splitfc.codec.quantisers.transform.models import (
    NONZERO_SHARES,
    RATIOS,
    nonzero_share_index,
    ratio_index,
    signed_model,
)

_ESCAPE_WIDTHS = 32
"""Symbols for the width of an escaped value, which is below ``2^32 - 1``."""

_SIGNED_PARAMETERS = np.array([NONZERO_SHARES, RATIOS], dtype=np.int32)
"""Levels of the two parameters that precede signed integers."""


def bit_widths(values: Ints) -> Ints:
    """Return the number of binary digits of each value, from 0 to ``2^53 - 1``.

    >>> bit_widths(np.array([0, 1, 2, 255, 256])).tolist()
    [0, 1, 2, 8, 9]
    """
    doubles = values.astype(np.float64)
    _, exponents = np.frexp(doubles)
    return exponents.astype(np.int64)


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
