"""Integers that are rarer the farther they are from 0: their class, then their place.

A magnitude has a class, of which there are two an octave, and a place in it::

    class        0  1  2  3  4    5    6      7       8 ...
    magnitudes   0  1  2  3  4-5  6-7  8-11   12-15   16-23 ...
    place, bits  0  0  0  0  1    1    2      2       3 ...

The class with the sign of the integer is a range-coded symbol, whose probability is by
weights in the header; the place is bits. Within a class all integers count as equally
probable, which for Gaussian ones takes 0.02 bits more than their entropy. Where zeros
are told apart from all integers, they are one more symbol.

The header is ``u8`` the lowest class plus 61, plus 128 if there are zeros; ``u8`` the
number of classes from the lowest to the highest, plus 128 if weights have eight bits
rather than four; the weights of these and then of the zeros, unless there is one symbol
alone. Then come the words, to the end (docs/wire-format.md, section 15).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

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
from flwr_splitfc.codec.format.fields import take
from flwr_splitfc.codec.format.symbols import (
    SYMBOL_PRECISION_BITS,
    ExactSymbolReader,
    pack_words,
    weighted_model,
    weighted_sizes,
)
from flwr_splitfc.codec.model_arrays.blocks import blocks
from flwr_splitfc.codec.model_arrays.class_weights import (
    class_weights,
    mark_bytes,
    nearest_marks,
    pack_marks,
    unpack_marks,
)

MOST_MAGNITUDE: int = 2**31 - 1
"""Largest magnitude of an integer."""

_MOST_CLASS = 61
"""That of the largest magnitude."""

_FLAG = 128
"""The highest bit of a byte."""

Zeros = NDArray[np.bool_]
"""For each entry, whether it is exactly zero."""


def _class_widths() -> Ints:
    """Return the bits of a place in each class."""
    classes = np.arange(_MOST_CLASS + 1)
    return np.maximum(classes // 2 - 1, 0)


def _class_bases() -> Ints:
    """Return the least magnitude of each class."""
    classes = np.arange(_MOST_CLASS + 1)
    two_or_three = 2 + classes % 2
    return np.where(classes < 4, classes, two_or_three << _class_widths())


_WIDTHS = _class_widths()
_BASES = _class_bases()


def magnitude_classes(magnitudes: Ints) -> Ints:
    """Return the class of each magnitude.

    >>> magnitude_classes(np.array([0, 1, 2, 3, 4, 5, 6, 8, 12, 2**31 - 1])).tolist()
    [0, 1, 2, 3, 4, 4, 5, 6, 7, 61]
    """
    # Exponent and first bit of the mantissa, as they stand in a float64: two an octave.
    doubles = magnitudes.astype(np.float64)
    half_octaves = doubles.view(np.int64) >> 51
    half_octaves_of_one = 2 * 1023
    from_two = half_octaves - half_octaves_of_one
    below_two = np.minimum(magnitudes, 1)
    classes: Ints = np.maximum(from_two, below_two)
    return classes


@dataclass(frozen=True)
class ClassHeader:
    """Which classes occur, and how probable they are.

    Parameters
    ----------
    first : int
        The lowest class, with its sign.
    classes : int
        How many there are from the lowest to the highest.
    has_zeros : bool
        Whether zeros are told apart from all integers; their symbol is the last.
    mark_bits : int
        Bits of a mark, 4 or 8.
    marks : Octets
        The weight of each symbol, as `class_weights` has them; none for one symbol.
    """

    first: int
    classes: int
    has_zeros: bool
    mark_bits: int
    marks: Octets

    @property
    def symbols(self) -> int:
        """How many different symbols there are."""
        return self.classes + int(self.has_zeros)

    @property
    def weights(self) -> Ints:
        """The weight of each symbol, where there is more than one."""
        return class_weights(self.marks, self.mark_bits)

    def signs(self) -> Ints:
        """Return the sign of the integers of each symbol, 0 for zeros."""
        return self._of_symbols(np.sign(self._signed_classes()))

    def widths(self) -> Ints:
        """Return the bits of a place, of each symbol."""
        magnitudes = np.abs(self._signed_classes())
        return self._of_symbols(_WIDTHS[magnitudes])

    def bases(self) -> Ints:
        """Return the least magnitude of each symbol."""
        magnitudes = np.abs(self._signed_classes())
        return self._of_symbols(_BASES[magnitudes])

    def _signed_classes(self) -> Ints:
        return np.arange(self.first, self.first + self.classes)

    def _of_symbols(self, of_classes: Ints) -> Ints:
        """Append 0 for the symbol of zeros, if there is one."""
        if self.has_zeros:
            return np.append(of_classes, 0)
        return of_classes


# Writing


def pack_integers(integers: Symbols, zeros: Zeros | None = None) -> bytes:
    """Write integers of magnitudes up to 2^31 - 1, at least one of them.

    Parameters
    ----------
    integers : Symbols of shape (entries,)
    zeros : Zeros of shape (entries,), optional
        Entries that are exactly zero, whose integers do not count; not all of them.
    """
    classes = _signed_classes(integers)
    of_integers = classes if zeros is None else classes[~zeros]
    first = int(of_integers.min())
    count = int(of_integers.max()) - first + 1
    symbols = np.subtract(classes, first, dtype=np.int32)
    has_zeros = bool(zeros is not None and zeros.any())
    if has_zeros:
        symbols[zeros] = count
    header = _shortest_header(symbols, first, count, has_zeros)
    runs = _runs(header, symbols, integers)
    return _pack_header(header) + pack_words(runs)


def _signed_classes(integers: Symbols) -> NDArray[np.int8]:
    classes = np.empty(len(integers), np.int8)
    for block in blocks(len(integers)):
        signed = integers[block].astype(np.int64)
        magnitudes = magnitude_classes(np.abs(signed))
        classes[block] = np.where(signed < 0, -magnitudes, magnitudes)
    return classes


def _shortest_header(
    symbols: Symbols, first: int, classes: int, has_zeros: bool
) -> ClassHeader:
    counts = np.bincount(symbols, minlength=classes + int(has_zeros))
    if len(counts) == 1:
        no_marks = np.zeros(0, np.uint8)
        return ClassHeader(first, classes, has_zeros, 4, no_marks)
    headers = []
    for mark_bits in (4, 8):
        marks = nearest_marks(counts, mark_bits)
        headers.append(ClassHeader(first, classes, has_zeros, mark_bits, marks))
    return min(headers, key=lambda header: _payload_bits(header, counts))


def _payload_bits(header: ClassHeader, counts: Ints) -> float:
    """Return the bits of marks and symbols, without those of places."""
    sizes = weighted_sizes(header.weights)
    symbol_bits = SYMBOL_PRECISION_BITS - np.log2(sizes)
    marks_bits = 8 * mark_bytes(header.symbols, header.mark_bits)
    return marks_bits + float(counts @ symbol_bits)


def _pack_header(header: ClassHeader) -> bytes:
    first = header.first + _MOST_CLASS
    classes = header.classes
    if header.has_zeros:
        first += _FLAG
    if header.mark_bits == 8:
        classes += _FLAG
    return struct.pack("<BB", first, classes) + pack_marks(
        header.marks, header.mark_bits
    )


def _runs(header: ClassHeader, symbols: Symbols, integers: Symbols) -> Iterator[Run]:
    widths = header.widths()
    bases = header.bases()
    model = weighted_model(header.weights) if header.symbols > 1 else None
    for block in blocks(len(symbols)):
        of_block = symbols[block]
        if model is not None:
            yield from symbol_runs(of_block, model)
        magnitudes = np.abs(integers[block].astype(np.int64))
        places = magnitudes - bases[of_block]
        yield from bit_runs(places, widths[of_block])


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
        Which of them are exactly zero; None where none is.

    Raises
    ------
    PayloadError
        If the bytes are not those of so many integers; after the last block, if it is
        found only then.
    """
    header, words = _unpack_header(data)
    if header.has_zeros and not may_have_zeros:
        raise PayloadError("zeros are told apart where none were wanted")
    widths = header.widths()
    bases = header.bases()
    signs = header.signs()
    model = weighted_model(header.weights) if header.symbols > 1 else None
    reader = ExactSymbolReader(words)
    for block in blocks(entries):
        count = block.stop - block.start
        symbols = np.zeros(count, np.int64)
        if model is not None:
            symbols = read_integers(reader, count, model)
        places = read_bits(reader, widths[symbols])
        magnitudes = bases[symbols] + places
        zeros = symbols == header.classes if header.has_zeros else None
        yield block, signs[symbols] * magnitudes, zeros
    reader.close()


def _unpack_header(data: memoryview) -> tuple[ClassHeader, memoryview]:
    (first_field, classes_field), rest = take(data, "BB")
    has_zeros = first_field >= _FLAG
    first = first_field % _FLAG - _MOST_CLASS
    classes = classes_field % _FLAG
    mark_bits = 8 if classes_field >= _FLAG else 4
    last = first + classes - 1
    if classes == 0 or last > _MOST_CLASS:
        raise PayloadError(
            f"{classes} classes from {first} were announced; "
            f"{-_MOST_CLASS} to {_MOST_CLASS} were wanted"
        )
    symbols = classes + int(has_zeros)
    marks, rest = _take_marks(rest, symbols, mark_bits)
    return ClassHeader(first, classes, has_zeros, mark_bits, marks), rest


def _take_marks(
    data: memoryview, symbols: int, mark_bits: int
) -> tuple[Octets, memoryview]:
    """Read the weights of symbols, if there is more than one; return the rest."""
    if symbols == 1:
        if mark_bits != 4:
            raise PayloadError("one class alone has no weights, of eight bits or four")
        return np.zeros(0, np.uint8), data
    size = mark_bytes(symbols, mark_bits)
    if len(data) < size:
        raise PayloadError(
            f"payload ends early: {len(data)} bytes left where {size} were wanted"
        )
    marks = unpack_marks(data[:size], symbols, mark_bits)
    if not marks.any():
        raise PayloadError(f"all {symbols} weights of classes are 0")
    return marks, data[size:]
