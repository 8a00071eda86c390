"""Integers that are rarer the farther they are from 0: their class, then their place.

The class of an integer's magnitude (`magnitude_classes`), with the integer's sign, is a
range-coded symbol with a probability by weights in the header. Within a class all
integers count as equally probable: the place is a value of known width, range-coded,
too. For Gaussian integers that takes 0.02 bits more than their entropy. Where zeros are
told apart from all integers, they are one more symbol.

A payload is the header and the words. Block by block, these have the classes of the
entries and then their places (docs/wire-format.md, section 15).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from flwr_splitfc.codec.arrays import Ints, Octets, Symbols
from flwr_splitfc.codec.errors import PayloadError
from flwr_splitfc.codec.format.bits import (
    Run,
    bit_runs,
    read_bits,
    read_integers,
    symbol_runs,
)
from flwr_splitfc.codec.format.symbols import ExactSymbolReader, pack_words
from flwr_splitfc.codec.model_arrays.blocks import blocks
from flwr_splitfc.codec.model_arrays.class_header import (
    CLASSES,
    ClassHeader,
    pack_class_header,
    shortest_header,
    unpack_class_header,
)
from flwr_splitfc.codec.model_arrays.magnitude_classes import MOST_CLASS, classes_of

Zeros = NDArray[np.bool_]
"""For each entry, whether it is exactly zero."""


# Writing


def pack_integers(integers: Symbols, zeros: Zeros | None = None) -> bytes:
    """Write integers of magnitudes up to 2^31 - 1, at least one of them.

    Parameters
    ----------
    integers : Symbols of shape (entries,)
    zeros : Zeros of shape (entries,), optional
        Entries that are exactly zero, but not all; their integers are 0.
    """
    classes = _classes_of_entries(integers)
    if zeros is not None:
        classes[zeros] = CLASSES
    counts = np.zeros(CLASSES + 1, np.int64)
    for block in blocks(len(classes)):
        counts += np.bincount(classes[block], minlength=CLASSES + 1)
    header = shortest_header(counts)
    runs = _runs(header, classes, integers)
    return pack_class_header(header) + pack_words(runs)


def _classes_of_entries(integers: Symbols) -> Octets:
    """Return the class of each integer, from 0 for the lowest that there is."""
    classes = np.empty(len(integers), np.uint8)
    for block in blocks(len(integers)):
        signed = integers[block].astype(np.int64)
        magnitudes = classes_of(np.abs(signed))
        classes[block] = MOST_CLASS + np.where(signed < 0, -magnitudes, magnitudes)
    return classes


def _runs(header: ClassHeader, classes: Octets, integers: Symbols) -> Iterator[Run]:
    """Yield the classes and places of each block."""
    model = header.model()
    symbols_by_class = header.symbols_by_class()
    least_magnitudes = header.least_magnitudes()
    widths = header.place_widths()
    for block in blocks(len(classes)):
        symbols = symbols_by_class[classes[block]]
        if model is not None:
            yield from symbol_runs(symbols, model)
        magnitudes = np.abs(integers[block].astype(np.int64))
        places = magnitudes - least_magnitudes[symbols]
        yield from bit_runs(places, widths[symbols])


# Reading


def unpack_integers(
    data: memoryview, entries: int, *, may_have_zeros: bool
) -> Iterator[tuple[slice, Ints, Zeros | None]]:
    """Read what `pack_integers` wrote, block by block.

    Yields
    ------
    slice
        The entries of the block.
    Ints
        Their integers.
    Zeros or None
        Which of them are exactly zero; None where none can be.

    Raises
    ------
    PayloadError
        If the bytes are not those of so many integers; perhaps only after the last
        block.
    """
    header, words = unpack_class_header(data)
    if header.has_zeros and not may_have_zeros:
        raise PayloadError("zeros are told apart where none were wanted")
    model = header.model()
    signs = header.signs()
    least_magnitudes = header.least_magnitudes()
    widths = header.place_widths()
    reader = ExactSymbolReader(words)
    for block in blocks(entries):
        count = block.stop - block.start
        symbols = np.zeros(count, np.int64)
        if model is not None:
            symbols = read_integers(reader, count, model)
        places = read_bits(reader, widths[symbols])
        magnitudes = least_magnitudes[symbols] + places
        zeros = symbols == header.classes if header.has_zeros else None
        yield block, signs[symbols] * magnitudes, zeros
    reader.close()
