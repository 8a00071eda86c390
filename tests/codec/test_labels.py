"""Labels come back exactly."""

from __future__ import annotations

import contextlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_splitfc.codec import PayloadError, pack_labels, unpack_labels
from flwr_splitfc.codec.format.label_header import LabelHeader, pack_label_header

INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
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


def test_bools() -> None:
    assert len(assert_comes_back(torch.rand(256) < 0.5)) < 60
    assert_comes_back(torch.ones(5, dtype=torch.bool))


def test_labels_are_as_small_as_their_range() -> None:
    generator = torch.Generator().manual_seed(0)
    header_bytes = 1 + 1 + 4 + 1 + 8 + 4
    ten = assert_comes_back(torch.randint(0, 10, (1000,), generator=generator))
    assert len(ten) <= header_bytes + 1000 * 3.33 / 8 + 8
    shifted = assert_comes_back(
        torch.randint(0, 10, (1000,), generator=generator) - 10**12
    )
    assert len(shifted) <= len(ten) + 4
    assert len(assert_comes_back(torch.full((1000,), 7))) == header_bytes
    assert (
        len(assert_comes_back(torch.tensor([0, 2**20] * 500)))
        == header_bytes - 4 + 4000
    )


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
