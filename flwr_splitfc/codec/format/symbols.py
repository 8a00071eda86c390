"""Streams of range-coded symbols, and how many bytes they take."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from functools import cache
from math import ceil
from typing import TypeAlias

import numpy as np
from constriction import stream
from numpy.typing import NDArray

from flwr_splitfc.codec.arrays import Doubles, Ints, Symbols
from flwr_splitfc.codec.errors import PayloadError
from flwr_splitfc.codec.format.fields import take

SYMBOL_PRECISION_BITS = 24
"""The range coder's probabilities are multiples of ``2**-24``."""


SYMBOL_OVERHEAD_BITS = 2e-4


_STREAM_SLACK_BITS = 4.0


MOST_LEVELS = 2**16


Model: TypeAlias = int | Symbols | stream.model.Model
"""The levels of all symbols or of each, or how probable they are."""


def sized_model(sizes: Ints) -> stream.model.Model:
    """Symbols with intervals of so many units of ``2**-24``, at least 1 each: constriction adds the 1."""
    return stream.model.Categorical((sizes - 1).astype(np.float64), perfect=False)


def stream_bytes(symbols: int, bits_each: float = 1.0) -> int:
    """Bytes that are enough for so many symbols, of two levels or of so many bits on average."""
    coder_bits = symbols // 4096
    return (
        0
        if symbols == 0
        else 4 + 4 * ((ceil(symbols * bits_each) + coder_bits) // 32 + 1)
    )


def pack_symbols(runs: Iterable[tuple[Symbols, Model]]) -> bytes:
    """Range-code runs of symbols, each with its number of levels (at least 2), one for all or one each."""
    encoder = stream.queue.RangeEncoder()
    for symbols, levels in runs:
        if isinstance(levels, stream.model.Model):
            encoder.encode(symbols, levels)
        elif isinstance(levels, int):
            encoder.encode(symbols, stream.model.Uniform(levels))
        else:
            encoder.encode(symbols, stream.model.Uniform(), levels)
    words: NDArray[np.uint32] = encoder.get_compressed()
    return (
        struct.pack("<I", len(words)) + words.astype("<u4", copy=False).tobytes()
        if len(words)
        else b""
    )


class SymbolReader:
    """Reads back the runs that `pack_symbols` wrote, in the same order.

    The decoder itself would read on past the end of its words, so their number is sent
    and checked. One of even levels takes a bit at least: no stream makes more of them
    than it has bits, whatever a header says.
    """

    def __init__(self, data: memoryview) -> None:
        words = data
        if data:
            (count,), words = take(data, "I")
            if count == 0 or len(words) != 4 * count:
                raise PayloadError(
                    f"symbol stream has {len(words)} bytes; {count} words were announced"
                )
        self._decoder = stream.queue.RangeDecoder(
            np.frombuffer(words, "<u4").astype(np.uint32)
        )
        self._most = 8 * len(words)
        self._read = self._even = 0

    def read(self, count: int, levels: Model) -> Symbols:
        """Read `count` symbols, each below its number of levels (at least 2)."""
        if count == 0:
            return np.zeros(0, np.int32)
        # such a symbol may take next to nothing
        sized = isinstance(levels, stream.model.Model)
        self._read += count
        self._even += 0 if sized else count
        if self._most == 0 or self._even > self._most:
            raise PayloadError(
                f"{self._read} symbols were wanted; the stream has {self._most} bits"
            )
        try:
            if sized:
                symbols = self._decoder.decode(levels, count)
            elif isinstance(levels, int):
                symbols = self._decoder.decode(stream.model.Uniform(levels), count)
            else:
                symbols = self._decoder.decode(stream.model.Uniform(), levels)
        except (AssertionError, RuntimeError, ValueError) as error:
            raise PayloadError("symbol stream is not range-coded data") from error
        return np.asarray(symbols, np.int32)

    def close(self) -> None:
        """Check that the stream may end here."""
        if not self._decoder.maybe_exhausted() or (self._read == 0 and self._most > 0):
            raise PayloadError("symbol stream goes on after the last symbol")


@cache
def level_bits() -> Doubles:
    """Bits of one symbol with q levels in the range coder, for q = 0 ... 2^16; a little above log2(q)."""
    whole = 2**SYMBOL_PRECISION_BITS
    q = np.arange(1, MOST_LEVELS + 1)
    return np.concatenate([[0.0], SYMBOL_PRECISION_BITS - np.log2(whole // q)])


def usable_bits(stream_bytes: int, symbols: int) -> float:
    """Information that fits into a stream of so many bytes and symbols, but for rare cases."""
    words = stream_bytes // 4 - 1  # the first tells how many there are
    return max(0.0, words * 32 - _STREAM_SLACK_BITS - SYMBOL_OVERHEAD_BITS * symbols)


def most_levels(stream_bytes: int, symbols: int) -> int:
    """How many levels a stream of so many bytes pays for, 2 ... 2^16, where all symbols have the same number.

    >>> most_levels(stream_bytes=7000, symbols=18_432)
    8
    """
    bits = usable_bits(stream_bytes, symbols) / symbols
    return max(2, int(np.searchsorted(level_bits(), bits, side="right")) - 1)
