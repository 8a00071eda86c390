"""Sets of columns, with golden bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_splitfc.codec import PayloadError
from flwr_splitfc.codec.format.column_sets import (
    column_set_bytes,
    pack_columns,
    pack_selection,
    selection_bytes,
    unpack_columns,
    unpack_selection,
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


def test_selection_of_too_many_columns() -> None:
    with pytest.raises(PayloadError, match="keeps 4294967295 columns of 9"):
        unpack_selection(memoryview(b"\xff" * 8), 9)
