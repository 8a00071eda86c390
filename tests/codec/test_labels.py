"""Labels come back exactly."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_splitfc.codec import PayloadError, pack_labels, unpack_labels
from flwr_splitfc.codec.format.column_sets import pack_columns
from flwr_splitfc.codec.format.counted_integers import least_counted_bytes, pack_counted
from flwr_splitfc.codec.format.label_header import (
    LabelHeader,
    pack_label_header,
    unpack_label_header,
)
from flwr_splitfc.codec.format.symbols import pack_words, weighted_model

INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
ONE_TO_3 = np.array([1, 3])
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def assert_comes_back(labels: torch.Tensor) -> bytes:
    data = pack_labels(labels)
    back = unpack_labels(data, max_entries=max(labels.numel(), 3))
    assert back.dtype == labels.dtype
    assert back.shape == labels.shape
    assert torch.equal(back, labels)
    return data


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("shape", [(), (1,), (256,), (4, 8, 8), (0,), (3, 0)])
def test_integers(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    limits = torch.iinfo(dtype)
    assert_comes_back(torch.randint(0, 10, shape).to(dtype))
    assert_comes_back(torch.full(shape, limits.min, dtype=dtype))
    assert_comes_back(torch.full(shape, limits.max, dtype=dtype))


@given(
    st.lists(
        st.integers(-(2**63), 2**63 - 1) | st.integers(-5, 5), min_size=1, max_size=30
    )
)
@settings(max_examples=200, deadline=None)
def test_any_int64(values: list[int]) -> None:
    assert_comes_back(torch.tensor(values, dtype=torch.int64))


@pytest.mark.parametrize("dtype", FLOATS)
def test_floats(dtype: torch.dtype) -> None:
    assert_comes_back(torch.randn(7, 3).to(dtype))


WHOLE_FLOATS = [torch.float16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", WHOLE_FLOATS)
def test_floats_of_several_classes_take_the_bits_of_their_range(
    dtype: torch.dtype,
) -> None:
    generator = torch.Generator().manual_seed(0)
    has_class = torch.randint(0, 2, (64, 40), generator=generator)
    assert abs(len(assert_comes_back(has_class.to(dtype))) - 64 * 40 / 8) < 20


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "numbers",
    [
        [-0.0, 1.0, 1.0],
        [0.0, -0.0],
        [math.nan, 1.0],
        [math.inf, 1.0],
        [-math.inf, math.inf],
        [0.0, 65536.0],
        [2.0**30, 2.0**30],
        [1.0] * 100 + [0.5],
        [1.0] * 100 + [-0.0],
    ],
)
def test_floats_that_are_no_whole_numbers_come_back_bit_by_bit(
    dtype: torch.dtype, numbers: list[float]
) -> None:
    labels = torch.tensor(numbers, dtype=dtype)
    back = unpack_labels(pack_labels(labels), 200)
    assert back.dtype == dtype
    assert torch.equal(back.view(torch.uint8), labels.view(torch.uint8))


@given(st.lists(st.integers(-3000, 3000).map(float), min_size=1, max_size=40))
@settings(max_examples=100, deadline=None)
def test_any_whole_floats(numbers: list[float]) -> None:
    for dtype in FLOATS:
        labels = torch.tensor(numbers, dtype=dtype)
        assert len(assert_comes_back(labels)) <= 7 + labels.nbytes


@pytest.mark.parametrize(
    ("dtype", "most"), [("float16", 2**11), ("float32", 2**24), ("float64", 2**53)]
)
def test_whole_numbers_that_a_float_cannot_hold_are_refused(
    dtype: str, most: int
) -> None:
    for offset, is_right in [(most, True), (most + 1, False), (-most - 1, False)]:
        header = LabelHeader(dtype, (3,), "symbols", offset, 1)
        data = pack_label_header(header)
        if is_right:
            assert unpack_labels(data, 3).tolist() == [offset] * 3
        else:
            with pytest.raises(PayloadError, match=f"are not {dtype}"):
                unpack_labels(data, 3)


def test_bools() -> None:
    assert len(assert_comes_back(torch.rand(256) < 0.5)) < 60
    assert_comes_back(torch.ones(5, dtype=torch.bool))


SHORTEST_HEADER_BYTES = 1 + 1 + 4 + 1 + 3
WORD_BYTES = 4


def entropy_bytes(labels: torch.Tensor) -> float:
    """By how often each value occurs, without saying how often."""
    counts = labels.unique(return_counts=True)[1]
    bits = counts * torch.log2(labels.numel() / counts)
    return bits.sum().item() / 8


def test_labels_are_as_small_as_their_range() -> None:
    generator = torch.Generator().manual_seed(0)
    ten = assert_comes_back(torch.randint(0, 10, (1000,), generator=generator))
    assert len(ten) <= SHORTEST_HEADER_BYTES + 1000 * 3.33 / 8 + WORD_BYTES
    far = torch.randint(0, 10, (1000,), generator=generator) - 10**12
    # the offset takes six bytes instead of one
    assert len(assert_comes_back(far)) <= len(ten) + 5 + WORD_BYTES
    assert len(assert_comes_back(torch.full((1000,), 7))) == SHORTEST_HEADER_BYTES
    wide = assert_comes_back(torch.tensor([0, 2**20] * 500))
    assert len(wide) == 1 + 1 + 4 + 1 + 8 + 4000


@pytest.mark.parametrize("count", [64, 256, 2048])
def test_two_classes_far_apart_take_a_bit_each(count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([3, 8])[torch.randint(0, 2, (count,), generator=generator)]
    data = assert_comes_back(labels)
    # the set of values, and one place of count - 1
    assert len(data) <= SHORTEST_HEADER_BYTES + 1 + 2 + count / 8 + WORD_BYTES


def test_what_occurs_more_often_takes_fewer_bits() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(64, generator=generator) ** 3
    drawn = torch.multinomial(weights, 2048, True, generator=generator)
    data = assert_comes_back(drawn.reshape(32, 64))
    sets_bytes = 8 + (64 * 5 + 64 + 64) / 8
    shape_bytes = 4
    most = entropy_bytes(drawn) + SHORTEST_HEADER_BYTES + shape_bytes + sets_bytes
    assert len(data) <= most + 2 * WORD_BYTES
    assert len(data) < 2048 * 6 / 8


def test_counts_that_do_not_pay_are_not_sent() -> None:
    generator = torch.Generator().manual_seed(0)
    even = torch.randint(0, 10, (64,), generator=generator)
    two = torch.tensor([3, 8])[even % 2]
    for labels, values in [(even, 0), (two, 2), (torch.full((64,), 3), 0)]:
        header, _ = unpack_label_header(memoryview(assert_comes_back(labels)))
        assert header.coding == "symbols"
        assert header.values == values


def header_of_counts(count: int, levels: int, values: int, offset: int = 0) -> bytes:
    header = LabelHeader("int64", (count,), "symbols", offset, levels, values)
    return pack_label_header(header)


@given(
    st.lists(st.integers(0, 3) | st.integers(0, 40), min_size=1, max_size=300),
    st.integers(0, 5),
)
@settings(max_examples=300, deadline=None)
def test_the_shorter_coding_is_sent(values: list[int], many: int) -> None:
    symbols = np.array(values + many * values[:1] * len(values), np.int32)
    symbols -= symbols.min()
    counts = np.bincount(symbols)
    occurring, counted = pack_counted(symbols, counts)
    assert least_counted_bytes(counts) <= len(counted)

    levels = len(counts)
    header = LabelHeader("int32", symbols.shape, "symbols", 0, levels)
    even = pack_words([(symbols, levels)]) if levels > 1 else b""
    payloads = [
        pack_label_header(header) + even,
        pack_label_header(replace(header, values=occurring)) + counted,
    ]
    assert pack_labels(torch.from_numpy(symbols)) == min(payloads, key=len)


@pytest.mark.parametrize(
    ("count", "levels", "values"),
    [(4, 8, 5), (8, 4, 5), (4, 0, 0), (4, 65537, 2), (4, 2**40, 2), (4, 8, 2**40)],
)
def test_values_are_as_many_as_there_can_be(
    count: int, levels: int, values: int
) -> None:
    with pytest.raises(PayloadError):
        unpack_labels(header_of_counts(count, levels, values) + bytes(64), 512)


def test_each_value_occurs_as_often_as_its_count_says() -> None:
    # 3 and 8 are the first and the last of six levels, and 3 is one of four labels
    which = pack_columns(np.array([0, 5]), 6)
    how_often = pack_columns(np.array([0]), 3)
    sets = which + how_often
    right = pack_words([(np.array([0, 1, 1, 1], np.int32), weighted_model(ONE_TO_3))])
    wrong = pack_words([(np.array([0, 0, 1, 1], np.int32), weighted_model(ONE_TO_3))])
    header = header_of_counts(4, 6, 2, offset=3)
    assert unpack_labels(header + sets + right, 4).tolist() == [3, 8, 8, 8]
    with pytest.raises(PayloadError, match="as often as their counts say"):
        unpack_labels(header + sets + wrong, 4)


@pytest.mark.parametrize(
    ("offset", "value", "fits"),
    [(250, 5, True), (250, 6, False), (-1, 6, False), (2**62, 0, False)],
)
def test_sums_of_offset_and_value_fit_the_type(
    offset: int, value: int, fits: bool
) -> None:
    header = LabelHeader("uint8", (3,), "symbols", offset, 8, 1)
    data = pack_label_header(header) + pack_columns(np.array([value]), 8)
    if fits:
        assert unpack_labels(data, 3).tolist() == [offset + value] * 3
    else:
        with pytest.raises(PayloadError, match="are not uint8"):
            unpack_labels(data, 3)


@pytest.mark.parametrize(
    "varint", ["8000", "ff" * 9 + "02", "80" * 12, "ff" * 10 + "01", ""]
)
def test_varints_have_one_form(varint: str) -> None:
    before = bytes([5, 0, 4])  # an int64 scalar
    with pytest.raises(PayloadError):
        unpack_labels(before + bytes.fromhex(varint), 4)


def test_too_many_entries_are_refused_before_they_are_allocated() -> None:
    data = bytearray(pack_labels(torch.zeros(4, dtype=torch.int64)))
    data[2:6] = b"\xff" * 4
    with pytest.raises(PayloadError, match="at most 512 entries"):
        unpack_labels(bytes(data), 512)


def test_empty_labels_are_as_bounded_as_any() -> None:
    data = bytearray(pack_labels(torch.zeros(0, 1, 1, 1)))
    data[6:18] = b"\xff" * 12
    with pytest.raises(PayloadError, match="at most 512 entries"):
        unpack_labels(bytes(data), 512)


def test_integers_are_never_raw() -> None:
    header = LabelHeader("bool", (4,), "raw")
    with pytest.raises(PayloadError, match="4 labels of bool are coded as raw"):
        unpack_labels(pack_label_header(header) + b"\0\1\2\xff", 512)
    with pytest.raises(PayloadError, match="0 labels of int64 are coded as range"):
        unpack_labels(pack_label_header(LabelHeader("int64", (0,), "range", 0, 1)), 512)
    with pytest.raises(PayloadError, match="4 labels of float32 are coded as range"):
        unpack_labels(
            pack_label_header(LabelHeader("float32", (4,), "range", 0, 1)), 512
        )
    with pytest.raises(PayloadError, match="4 labels of bfloat16 are coded as symbols"):
        unpack_labels(
            pack_label_header(LabelHeader("bfloat16", (4,), "symbols", 0, 1)), 512
        )


def test_only_bytes_are_read() -> None:
    with pytest.raises(PayloadError, match="payload is str; bytes were wanted"):
        unpack_labels("labels", 512)  # type: ignore[arg-type]


def test_unsupported_types() -> None:
    with pytest.raises(ValueError, match="got complex64"):
        pack_labels(torch.zeros(3, dtype=torch.complex64))


@pytest.mark.parametrize(
    "labels",
    [
        torch.arange(40) % 10,
        torch.tensor([3, 8, 8] * 20),
        torch.tensor([0, 10**6]),
        torch.rand(6),
        torch.tensor([True, False]),
    ],
)
def test_malformed_bytes(labels: torch.Tensor) -> None:
    data = pack_labels(labels)
    for size in range(len(data)):
        with pytest.raises(PayloadError):
            unpack_labels(data[:size], 100)
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with contextlib.suppress(PayloadError):
            assert unpack_labels(bytes(flipped), 100).numel() <= 100
    with pytest.raises(PayloadError):
        unpack_labels(data + bytes(16), 100)
