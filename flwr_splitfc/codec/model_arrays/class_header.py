"""What precedes coded integers: their classes and how probable these are.

``u8`` the lowest class plus 61, plus 128 if there are zeros; ``u8`` the number of
classes from the lowest to the highest, plus 128 if weights have eight bits rather than
four; the weights of these and then of the zeros, unless there is one symbol alone
(docs/wire-format.md, section 15).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

import numpy as np
from constriction import stream

from flwr_splitfc.codec.arrays import Ints, Octets, Symbols
from flwr_splitfc.codec.errors import PayloadError
from flwr_splitfc.codec.format.fields import take, take_bytes
from flwr_splitfc.codec.format.symbols import (
    SYMBOL_PRECISION_BITS,
    weighted_model,
    weighted_sizes,
)
from flwr_splitfc.codec.model_arrays.class_weights import (
    mark_bytes,
    mark_weights,
    nearest_marks,
    pack_marks,
    unpack_marks,
)
from flwr_splitfc.codec.model_arrays.magnitude_classes import (
    LEAST_MAGNITUDES,
    MOST_CLASS,
    PLACE_WIDTHS,
)

CLASSES = 2 * MOST_CLASS + 1
"""With their signs, from -61 to 61."""

_FLAG = 128
"""The highest bit of a byte."""


@dataclass(frozen=True)
class ClassHeader:
    """Which classes occur, and how probable they are.

    Symbols stand for the classes from the lowest to the highest; where zeros are told
    apart from all integers, they are the last symbol.

    Parameters
    ----------
    first : int
        The lowest class, with the sign of its integers.
    classes : int
        How many there are from the lowest to the highest.
    has_zeros : bool
    mark_bits : int
        Bits of a mark, 4 or 8.
    marks : Octets
        The weight of each symbol, as `mark_weights` has them; none for one symbol.
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

    def model(self) -> stream.model.Model | None:
        """Return how probable symbols are; None where there is one alone."""
        if self.symbols == 1:
            return None
        return weighted_model(mark_weights(self.marks, self.mark_bits))

    def symbols_by_class(self) -> Symbols:
        """Return the symbol of each class from -61 to 61, and then that of zeros."""
        symbols = np.zeros(CLASSES + 1, np.int32)
        start = self.first + MOST_CLASS
        symbols[start : start + self.classes] = np.arange(self.classes)
        symbols[CLASSES] = self.classes
        return symbols

    def signs(self) -> Ints:
        """Return the sign of the integers of each symbol, 0 for zeros."""
        return self._of_symbols(np.sign(self._signed_classes()))

    def place_widths(self) -> Ints:
        """Return the bits of a place, of each symbol."""
        of_classes = PLACE_WIDTHS[np.abs(self._signed_classes())]
        return self._of_symbols(of_classes)

    def least_magnitudes(self) -> Ints:
        """Return the least magnitude of each symbol."""
        of_classes = LEAST_MAGNITUDES[np.abs(self._signed_classes())]
        return self._of_symbols(of_classes)

    def _signed_classes(self) -> Ints:
        return np.arange(self.first, self.first + self.classes)

    def _of_symbols(self, of_classes: Ints) -> Ints:
        """Append 0 for the symbol of zeros, if there is one."""
        if self.has_zeros:
            return np.append(of_classes, 0)
        return of_classes


# Writing


def shortest_header(counts: Ints) -> ClassHeader:
    """Return the header with which the payload is shortest.

    Parameters
    ----------
    counts : Ints
        How often each class from -61 to 61 occurs, and then how often zeros do. One of
        the classes at least occurs.
    """
    zeros = counts[CLASSES]
    occurring = np.flatnonzero(counts[:CLASSES])
    lowest = int(occurring[0])
    highest = int(occurring[-1])
    of_symbols = counts[lowest : highest + 1]
    if zeros > 0:
        of_symbols = np.append(of_symbols, zeros)
    no_marks = np.zeros(0, np.uint8)
    header = ClassHeader(
        first=lowest - MOST_CLASS,
        classes=highest - lowest + 1,
        has_zeros=bool(zeros > 0),
        mark_bits=4,
        marks=no_marks,
    )
    if header.symbols == 1:
        return header
    narrow = _with_marks(header, of_symbols, 4)
    wide = _with_marks(header, of_symbols, 8)
    is_narrow = _payload_bits(narrow, of_symbols) <= _payload_bits(wide, of_symbols)
    return narrow if is_narrow else wide


def _with_marks(header: ClassHeader, counts: Ints, mark_bits: int) -> ClassHeader:
    marks = nearest_marks(counts, mark_bits)
    return replace(header, mark_bits=mark_bits, marks=marks)


def _payload_bits(header: ClassHeader, counts: Ints) -> float:
    """Return the bits of marks and symbols."""
    sizes = weighted_sizes(mark_weights(header.marks, header.mark_bits))
    symbol_bits = SYMBOL_PRECISION_BITS - np.log2(sizes)
    marks_bits = 8 * mark_bytes(header.symbols, header.mark_bits)
    return marks_bits + float(counts @ symbol_bits)


def pack_class_header(header: ClassHeader) -> bytes:
    """Write everything that precedes the words."""
    first = header.first + MOST_CLASS
    classes = header.classes
    if header.has_zeros:
        first += _FLAG
    if header.mark_bits == 8:
        classes += _FLAG
    marks = pack_marks(header.marks, header.mark_bits)
    return struct.pack("<BB", first, classes) + marks


# Reading


def unpack_class_header(data: memoryview) -> tuple[ClassHeader, memoryview]:
    """Read what `pack_class_header` wrote and return the bytes that follow."""
    (first_field, classes_field), rest = take(data, "BB")
    has_zeros = first_field >= _FLAG
    first = first_field % _FLAG - MOST_CLASS
    mark_bits = 8 if classes_field >= _FLAG else 4
    classes = classes_field % _FLAG
    last = first + classes - 1
    if classes == 0 or last > MOST_CLASS:
        raise PayloadError(
            f"{classes} classes from {first} were announced; "
            f"{-MOST_CLASS} to {MOST_CLASS} were wanted"
        )
    symbols = classes + int(has_zeros)
    marks, rest = _take_marks(rest, symbols, mark_bits)
    return ClassHeader(first, classes, has_zeros, mark_bits, marks), rest


def _take_marks(
    data: memoryview, symbols: int, mark_bits: int
) -> tuple[Octets, memoryview]:
    """Read the marks of symbols, none for one symbol, and return the rest."""
    if symbols == 1:
        if mark_bits == 8:
            raise PayloadError("one class alone has weights of eight bits; none wanted")
        return np.zeros(0, np.uint8), data
    size = mark_bytes(symbols, mark_bits)
    packed, rest = take_bytes(data, size, "weights end")
    marks = unpack_marks(packed, symbols, mark_bits)
    if not marks.any():
        raise PayloadError(f"all {symbols} weights of classes are 0")
    return marks, rest
