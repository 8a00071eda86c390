"""Streams of symbols, with golden bytes."""

from __future__ import annotations

import numpy as np
import pytest

from flwr_splitfc.codec import PayloadError
from flwr_splitfc.codec.arrays import Symbols
from flwr_splitfc.codec.format.symbols import SymbolReader, pack_symbols, stream_bytes

GOLDEN_SYMBOLS = "03000000a7a701007fdcc5d2acac155e"


def test_golden_symbols() -> None:
    runs: list[tuple[Symbols, int | Symbols]] = [
        (np.arange(8, dtype=np.int32), 200),
        (np.array([2, 0, 6], np.int32), np.array([3, 2, 7], np.int32)),
    ]
    data = pack_symbols(runs)
    assert data.hex() == GOLDEN_SYMBOLS
    reader = SymbolReader(memoryview(data))
    for symbols, levels in runs:
        np.testing.assert_array_equal(reader.read(len(symbols), levels), symbols)
    reader.close()


def test_two_level_streams_fit_their_bound() -> None:
    for count in (1, 31, 32, 33, 64, 1000, 8192, 200_000):
        for symbols in (
            np.zeros(count, np.int32),
            np.ones(count, np.int32),
            np.arange(count) % 2,
        ):
            assert len(pack_symbols([(symbols.astype(np.int32), 2)])) <= stream_bytes(
                count
            )


def test_no_symbols_no_bytes() -> None:
    assert pack_symbols([]) == b""
    SymbolReader(memoryview(b"")).close()
    with pytest.raises(PayloadError, match="0 words were announced"):
        SymbolReader(memoryview(bytes(4)))
    with pytest.raises(PayloadError, match="goes on after the last symbol"):
        SymbolReader(memoryview(bytes([1, 0, 0, 0, 5, 5, 5, 5]))).close()


def test_streams_must_end_with_the_last_symbol() -> None:
    data = pack_symbols([(np.arange(50, dtype=np.int32), 50)])

    def read(stream: bytes) -> None:
        reader = SymbolReader(memoryview(stream))
        reader.read(50, 50)
        reader.close()

    read(data)
    for wrong in (data + bytes(4), data[:-4], data[:-1], data[:4], data[:3]):
        with pytest.raises(PayloadError, match=r"words were announced|ends early"):
            read(wrong)
    with pytest.raises(
        PayloadError, match="50 symbols were wanted; the stream has 0 bits"
    ):
        read(b"")
    with pytest.raises(
        PayloadError, match="50 symbols were wanted; the stream has 32 bits"
    ):
        read(bytes([1, 0, 0, 0, 0, 0, 0, 0]))
    longer = bytearray(data + bytes(12))
    longer[:4] = ((len(longer) - 4) // 4).to_bytes(4, "little")
    with pytest.raises(PayloadError, match="goes on"):
        read(bytes(longer))
