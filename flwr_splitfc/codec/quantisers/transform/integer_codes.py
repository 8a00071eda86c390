"""Integers as runs of symbols for `pack_symbols`, and back from a `SymbolReader`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flwr_splitfc.codec.arrays import Ints, Symbols
from flwr_splitfc.codec.format.symbols import Model, SymbolReader
from flwr_splitfc.codec.quantisers.transform.margins import (
    RATIOS,
    magnitudes_model,
    ratio_index,
)

Run: TypeAlias = tuple[Symbols, Model]

_ZERO_INDICES = 64
_WIDTHS = 32


def symbols(values: NDArray[Any], levels: Model) -> Iterator[Run]:
    """Values as they are; no run where there are none."""
    if len(values):
        yield values.astype(np.int32), levels


def plain_bits(values: Ints, widths: Ints) -> Iterator[Run]:
    """Non-negative values of 0 to 32 bits each: first what is beyond 16 bits of each, then the rest."""
    for shift, bits in _halves(widths):
        wide = bits > 0
        yield from symbols(
            (values >> shift & 0xFFFF)[wide], (1 << bits[wide]).astype(np.int32)
        )


def read_bits(reader: SymbolReader, widths: Ints) -> Ints:
    """Read what `plain_bits` wrote."""
    values = np.zeros(len(widths), np.int64)
    for shift, bits in _halves(widths):
        wide = bits > 0
        low = reader.read(int(wide.sum()), (1 << bits[wide]).astype(np.int32))
        values[wide] |= low.astype(np.int64) << shift
    return values


def _halves(widths: Ints) -> tuple[tuple[int, Ints], tuple[int, Ints]]:
    return (16, np.maximum(widths - 16, 0)), (0, np.minimum(widths, 16))


def escapes(values: Ints) -> Iterator[Run]:
    """Exp-Golomb: the width of each value + 1 less one, then its bits below the highest. Values below 2^32 - 1."""
    widths = bit_lengths(values + 1) - 1
    yield from symbols(widths, _WIDTHS)
    yield from plain_bits(values + 1 - (1 << widths), widths)


def read_escapes(reader: SymbolReader, count: int) -> Ints:
    """Read what `escapes` wrote."""
    widths = reader.read(count, _WIDTHS).astype(np.int64)
    return (1 << widths) + read_bits(reader, widths) - 1


def bit_lengths(values: Ints) -> Ints:
    """Bits of each non-negative value below 2^53."""
    return np.frexp(values.astype(np.float64))[1].astype(np.int64)


def signed(values: Ints, most: int) -> Iterator[Run]:
    """Small integers about zero: two indices of their probabilities, magnitudes up to `most`, signs."""
    magnitudes = np.abs(values)
    others = magnitudes[magnitudes > 0]
    zero_index = min(
        max(round(65 * len(others) / len(values)) - 1, 0), _ZERO_INDICES - 1
    )
    ratio = ratio_index(len(others), int((others - 1).sum()))
    yield from symbols(
        np.array([zero_index, ratio]), np.array([_ZERO_INDICES, RATIOS], np.int32)
    )
    yield from symbols(magnitudes, magnitudes_model(zero_index, ratio, most + 1))
    yield from symbols((values < 0)[magnitudes > 0], 2)


def read_signed(reader: SymbolReader, count: int, most: int) -> Ints:
    """Read what `signed` wrote, of at least one value."""
    zero_index, ratio = reader.read(
        2, np.array([_ZERO_INDICES, RATIOS], np.int32)
    ).tolist()
    values = reader.read(count, magnitudes_model(zero_index, ratio, most + 1)).astype(
        np.int64
    )
    others = values > 0
    values[others] *= 1 - 2 * reader.read(int(others.sum()), 2).astype(np.int64)
    return values
