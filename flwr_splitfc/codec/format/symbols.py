"""Streams of range-coded symbols, and how many bytes they take.

A stream is ``u32`` the number of words and so many ``u32`` words to the end of the
payload; a payload without symbols has no stream at all. The range coder is
constriction's, with probabilities in multiples of ``2**-24``: a symbol of q equally
probable levels takes ``24 - log2(floor(2**24 / q))`` bits, a little above ``log2(q)``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
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
"""Kept free for each symbol, as the coder takes a little more than its level's bits."""

MOST_LEVELS = 2**16
"""Most levels of a symbol, but for those of sized models."""

Model: TypeAlias = int | Symbols | stream.model.Model
"""The levels (at least 2) of all symbols, or of each, or how probable they are."""

_WORD_BITS = 32
_WORD_BYTES = 4

# Kept free for the end of a stream.
_STREAM_SLACK_BITS = 4.0

# For so many symbols, one bit is added to what their levels alone would take.
_SYMBOLS_PER_CODER_BIT = 4096


def sized_model(sizes: Ints) -> stream.model.Model:
    """Return the model of symbols with intervals of so many units of ``2**-24``.

    Each size is at least 1, which constriction adds itself.
    """
    return stream.model.Categorical(sizes - 1.0, perfect=False)


def weighted_model(weights: Ints) -> stream.model.Model:
    """Return the model of symbols that are as probable as their weights say.

    A symbol of weight 0 can occur all the same, at 24 bits.

    Parameters
    ----------
    weights : Ints
        Fewer than 2^16, from 0 to ``2^23``, and not all 0.
    """
    return sized_model(weighted_sizes(weights))


def weighted_sizes(weights: Ints) -> Ints:
    """Return the interval of each symbol in units of ``2**-24``.

    All is computed in integers, so sender and receiver have the same sizes.

    >>> weighted_sizes(np.array([1, 3, 0])).tolist()
    [4194304, 12582911, 1]
    """
    whole = 2**SYMBOL_PRECISION_BITS
    shares = weights * whole // weights.sum()
    sizes: Ints = np.maximum(shares, 1)
    # What rounding has left over or taken goes to the first of the most probable.
    sizes[weights.argmax()] += whole - sizes.sum()
    return sizes


def stream_bytes(symbols: int, bits_each: float = 1.0) -> int:
    """Return bytes that are enough for so many symbols.

    They have two levels, or take `bits_each` bits on average.
    """
    if symbols == 0:
        return 0
    symbol_bits = ceil(symbols * bits_each)
    coder_bits = symbols // _SYMBOLS_PER_CODER_BIT
    words = (symbol_bits + coder_bits) // _WORD_BITS + 1
    # The first word of the stream is the number of the others.
    return _WORD_BYTES * (1 + words)


def pack_symbols(runs: Iterable[tuple[Symbols, Model]]) -> bytes:
    """Range-code runs of symbols, each with the model of its symbols."""
    words = pack_words(runs)
    if not words:
        return b""
    count = struct.pack("<I", len(words) // _WORD_BYTES)
    return count + words


def pack_within(pack: Callable[[int], tuple[bytes, bool]], budget_bytes: int) -> bytes:
    """Return the payload of at most the budget, or else the smallest that there is.

    Parameters
    ----------
    pack : callable
        Makes a payload of about so many bytes, and tells whether none is smaller.
    """
    target_bytes = budget_bytes
    while True:
        payload, is_smallest = pack(target_bytes)
        excess_bytes = len(payload) - budget_bytes
        if excess_bytes <= 0 or is_smallest:
            return payload
        # the estimate was short by this much; streams grow and shrink by words
        target_bytes -= max(_WORD_BYTES, excess_bytes)


def pack_words(runs: Iterable[tuple[Symbols, Model]]) -> bytes:
    """Range-code runs of symbols to words alone, without their number."""
    encoder = stream.queue.RangeEncoder()
    for symbols, model in runs:
        _encode(encoder, symbols, model)
    return _little_endian_words(encoder)


def _encode(encoder: stream.queue.RangeEncoder, symbols: Symbols, model: Model) -> None:
    if isinstance(model, np.ndarray):
        encoder.encode(symbols, stream.model.Uniform(), model)
    else:
        encoder.encode(symbols, _common_model(model))


def _little_endian_words(encoder: stream.queue.RangeEncoder) -> bytes:
    words: NDArray[np.uint32] = encoder.get_compressed()
    return words.astype("<u4", copy=False).tobytes()


def _common_model(model: int | stream.model.Model) -> stream.model.Model:
    """Return the coder's model where all symbols of a run have the same."""
    if isinstance(model, int):
        return stream.model.Uniform(model)
    return model


class SymbolReader:
    """Reads back the runs that `pack_symbols` wrote, in the same order.

    `counted` is whether the number of words precedes them.

    The decoder itself would read on past the end of its words, so their number is sent
    and checked. A symbol of even levels takes a bit at least, so no stream makes more
    of them than it has bits, whatever a header says. A symbol of a sized model may take
    next to nothing.
    """

    def __init__(self, data: memoryview, *, counted: bool = True) -> None:
        words = data
        if data and counted:
            (count,), words = take(data, "I")
            if count == 0 or len(words) != _WORD_BYTES * count:
                raise PayloadError(
                    f"symbol stream has {len(words)} bytes; "
                    f"{count} words were announced"
                )
        little_endian = np.frombuffer(words, "<u4")
        native = little_endian.astype(np.uint32, copy=False)
        self._decoder = stream.queue.RangeDecoder(native)
        self._stream_bits = 8 * len(words)
        self._symbols_read = 0
        self._least_bits_read = 0

    def read(self, count: int, model: Model) -> Symbols:
        """Read `count` symbols of the model that they were written with."""
        if count == 0:
            return np.zeros(0, np.int32)
        self._account(count, model)
        # These are what constriction raises on words that no encoder writes.
        try:
            symbols = self._decode(count, model)
        except (AssertionError, RuntimeError, ValueError) as error:
            raise PayloadError("symbol stream is not range-coded data") from error
        return np.asarray(symbols, np.int32)

    def _account(self, count: int, model: Model) -> None:
        """Refuse to read more symbols than the stream can hold."""
        self._symbols_read += count
        if not isinstance(model, stream.model.Model):
            self._least_bits_read += count
        if self._stream_bits == 0 or self._least_bits_read > self._stream_bits:
            raise PayloadError(
                f"{self._symbols_read} symbols were wanted; "
                f"the stream has {self._stream_bits} bits"
            )

    def _decode(self, count: int, model: Model) -> Symbols:
        if isinstance(model, np.ndarray):
            return self._decoder.decode(stream.model.Uniform(), model)  # type: ignore[no-any-return]
        return self._decoder.decode(_common_model(model), count)  # type: ignore[no-any-return]

    def close(self) -> None:
        """Check that the stream may end here."""
        # The decoder cannot tell before it has read a symbol.
        if self._symbols_read == 0:
            exhausted = self._stream_bits == 0
        else:
            exhausted = self._decoder.maybe_exhausted()
        if not exhausted:
            raise PayloadError("symbol stream goes on after the last symbol")


class ExactSymbolReader(SymbolReader):
    """Reads what `pack_words` wrote.

    The number of words was not sent, which saves four bytes a payload. In its place,
    symbols are encoded again as they are read, which takes about a fifth of the time to
    read them. At the end the words must be the same: missing or more or other words are
    refused, and no two payloads have the same symbols.
    """

    def __init__(self, data: memoryview) -> None:
        if len(data) % _WORD_BYTES != 0:
            raise PayloadError(f"symbols have {len(data)} bytes, which are no words")
        super().__init__(data, counted=False)
        self._words = data
        self._again = stream.queue.RangeEncoder()

    def read(self, count: int, model: Model) -> Symbols:
        symbols = super().read(count, model)
        _encode(self._again, symbols, model)
        return symbols

    def close(self) -> None:
        again = _little_endian_words(self._again)
        if again != self._words:
            raise PayloadError(
                f"symbols have {len(self._words)} bytes, "
                f"which are not the {len(again)} that encode them"
            )


@cache
def level_bits() -> Doubles:
    """Return the bits of one symbol with q levels, for q = 0 ... 2^16; 0 for q = 0."""
    q = np.arange(1, MOST_LEVELS + 1)
    units_per_level = 2**SYMBOL_PRECISION_BITS // q
    bits = SYMBOL_PRECISION_BITS - np.log2(units_per_level)
    return np.concatenate([[0.0], bits])


def usable_bits(budget_bytes: int, symbols: int) -> float:
    """Return the information that fits into a stream of so many bytes and symbols.

    In rare cases the stream gets longer than the budget all the same.
    """
    words = budget_bytes // _WORD_BYTES - 1  # the first tells how many there are
    stream_bits = words * _WORD_BITS - _STREAM_SLACK_BITS
    return max(0.0, stream_bits - SYMBOL_OVERHEAD_BITS * symbols)


def most_levels(budget_bytes: int, symbols: int) -> int:
    """Return how many levels a stream of so many bytes pays for, 2 ... 2^16.

    All symbols have the same number.

    >>> most_levels(budget_bytes=7000, symbols=18_432)
    8
    """
    bits_each = usable_bits(budget_bytes, symbols) / symbols
    above = np.searchsorted(level_bits(), bits_each, side="right")
    affordable = int(above) - 1
    return max(2, affordable)
