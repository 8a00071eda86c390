"""The byte formats, with golden bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_splitfc.codec import PayloadError
from flwr_splitfc.codec.arrays import Symbols
from flwr_splitfc.codec.format.column_sets import (
    column_set_bytes,
    pack_columns,
    pack_selection,
    selection_bytes,
    unpack_columns,
    unpack_selection,
)
from flwr_splitfc.codec.format.symbols import SymbolReader, pack_symbols, stream_bytes
from flwr_splitfc.codec.quantisers.feature.header import (
    QuantHeader,
    Upgrades,
    pack_quant_header,
    quant_header_bytes,
    unpack_quant_header,
)


@st.composite
def column_sets(draw: st.DrawFn) -> tuple[list[int], int]:
    total = draw(st.integers(1, 400))
    return sorted(draw(st.sets(st.integers(0, total - 1)))), total


@given(column_sets())
@settings(max_examples=300, deadline=None)
def test_column_sets_come_back(case: tuple[list[int], int]) -> None:
    columns, total = case
    data = pack_columns(np.array(columns, np.int64), total)
    assert len(data) == column_set_bytes(len(columns), total) <= (total + 7) // 8
    unpacked, rest = unpack_columns(memoryview(data + b"!"), len(columns), total)
    assert unpacked.tolist() == columns
    assert bytes(rest) == b"!"


@given(st.integers(1, 40), st.integers(1, 40), st.binary(min_size=5, max_size=5))
@settings(max_examples=300, deadline=None)
def test_any_accepted_column_set_is_canonical(
    count: int, total: int, data: bytes
) -> None:
    count = min(count, total)
    try:
        columns, rest = unpack_columns(memoryview(data), count, total)
    except PayloadError:
        return
    assert pack_columns(columns, total) == data[: len(data) - len(rest)]


def test_sparse_sets_are_shorter_than_a_bitmap() -> None:
    assert column_set_bytes(72, 1152) == 54
    assert column_set_bytes(512, 8192) == 384
    assert column_set_bytes(600, 1152) == 144


@pytest.mark.parametrize("width", [1, 2, 3, 37, 64, 255, 1152])
def test_longest_selection_is_that_of_some_count(width: int) -> None:
    longest = 0
    for most in range(width + 1):
        longest = max(longest, column_set_bytes(most, width))
        assert selection_bytes(0, most, width) == 4 + longest
    assert selection_bytes(width, width, width) == 4


@pytest.mark.parametrize(
    ("columns", "total", "golden"),
    [
        ([], 9, ""),
        (list(range(9)), 9, ""),
        ([0, 2, 3, 8], 9, "0d01"),
        ([3, 40, 63], 64, "839f02"),
    ],
)
def test_golden_column_sets(columns: list[int], total: int, golden: str) -> None:
    assert pack_columns(np.array(columns, np.int64), total).hex() == golden


def test_golden_selection() -> None:
    assert pack_selection(np.array([0, 2, 3, 8]), 9).hex() == "040000000d01"
    assert pack_selection(None, 9).hex() == "09000000"


def test_golden_quantiser_header() -> None:
    header = QuantHeader(np.array([1]), -1.0, 1.0, 0.5, Upgrades(1), 2.0, 3.0, 4)
    golden = (
        "01000000_000080bf0000803f0000003f010000000000_02_00000040000040400300".replace(
            "_", ""
        )
    )
    assert pack_quant_header(header, 3).hex() == golden
    assert len(golden) // 2 == quant_header_bytes(1, 3)


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


GOLDEN_SYMBOLS = "03000000a7a701007fdcc5d2acac155e"


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


HEADER = QuantHeader(np.array([1]), -1.0, 1.0, 0.5, Upgrades(1), 2.0, 3.0, 4)


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, "04000000", "4 two-stage columns of 3"),
        (4, "0000c07f", "endpoint interval is nan"),
        (4, "00000040", "endpoint interval is 2.0 to 1.0"),
        (8, "ffff7f7f", "endpoint interval"),
        (12, "00000000", "multiplier is 0.0"),
        (12, "0000807f", "multiplier is inf"),
        (20, "01", "0 upgrades after 1 skipped"),
        (22, "06", "column set is not 1 increasing columns below 3"),
        (22, "0a", "column set"),
        (23, "00008040", "mean interval is 4.0 to 3.0"),
        (31, "0000", "1 mean levels from 2.0 to 3.0"),
    ],
)
def test_malformed_headers_are_named(offset: int, value: str, message: str) -> None:
    data = bytearray(pack_quant_header(HEADER, 3))
    data[offset : offset + len(value) // 2] = bytes.fromhex(value)
    with pytest.raises(PayloadError, match=message):
        unpack_quant_header(memoryview(data), 3)


def test_truncated_headers_are_named() -> None:
    data = pack_quant_header(HEADER, 3)
    for size in range(len(data)):
        with pytest.raises(PayloadError, match="ends early"):
            unpack_quant_header(memoryview(data[:size]), 3)


def test_selection_of_too_many_columns() -> None:
    with pytest.raises(PayloadError, match="keeps 4294967295 columns of 9"):
        unpack_selection(memoryview(b"\xff" * 8), 9)
