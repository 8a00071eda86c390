"""Decisions read off the bytes of an input, so that a fuzzer of bytes makes messages."""

import struct
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

WHOLE_NUMBERS = [
    *(0, 1, 2, 3, 7, 8, 9, 16, 64, 255, 256, 4096, 4097),
    *(2**15, 2**16 - 1, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1),
]
FLOATS = [
    *(0.0, -0.0, 1e-45, 1e-30, 0.5, 1.0, -1.0, 8.0, 33.0, 1e7, 1e14, 1e25),
    *(3e38, -3e38, 1e300, float("inf"), float("-inf"), float("nan")),
]
TEXTS = [
    *("", "0", "1", "-1", "9" * 5000, "x" * 150, "x" * 10_000, "\x1b[2J\n", "\0"),
    *("\u202e", "\u0663", "½", "0.step", "0.exp_avg", "1.exp_avg_sq", "float16"),
    *("bool", "int64", "float64", "float32", "splitfc/1", "train", "query", "%s%n"),
]


class Choices:
    """The decisions that an input holds, one after another.

    After its last byte each decision is the first of its options, so that every input
    comes to an end.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def are_left(self) -> bool:
        return self._at < len(self._data)

    def bytes(self, count: int) -> bytes:
        """At most so many bytes, as they are."""
        taken = self._data[self._at : self._at + count]
        self._at += len(taken)
        return taken

    def below(self, end: int) -> int:
        """A whole number from 0 up to, but not including, `end`."""
        width = max((end - 1).bit_length() + 7, 8) // 8
        return int.from_bytes(self.bytes(width), "little") % end

    def one_in(self, count: int) -> bool:
        """Whether something happens that does once in so many times; not at the end."""
        return self.are_left and self.below(count) == count - 1

    def of(self, options: Sequence[T]) -> T:
        return options[self.below(len(options))]

    def whole_number(self, bits: int) -> int:
        """A number of so many bits, often one at which something ends."""
        if self.one_in(2):
            return int.from_bytes(self.bytes(bits // 8), "little")
        return self.of(WHOLE_NUMBERS) % 2**bits

    def float(self) -> float:
        if self.one_in(2):
            (number,) = struct.unpack("<d", self.bytes(8).ljust(8, b"\0"))
            return number
        return self.of(FLOATS)

    def text(self) -> str:
        if self.one_in(3):
            return self.bytes(self.below(40)).decode("utf-8", "replace")
        return self.of(TEXTS)
