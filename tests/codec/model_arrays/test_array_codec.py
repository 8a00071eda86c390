"""Model arrays come back as precisely as their bits say, in as few bytes."""

from __future__ import annotations

from math import log2, prod

import numpy as np
import pytest
from flwr.app import Array
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from flwr_splitfc.codec import PayloadError
from flwr_splitfc.codec.model_arrays import (
    EXACT_BITS,
    LEAST_BITS,
    MOST_BITS,
    decode_array,
    encode_array,
)

Entries = NDArray[np.float32]

BITS = range(LEAST_BITS, MOST_BITS + 1)
FLOATS = ["float16", "float32", "float64"]
OTHERS = [
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "complex64", "complex128",
]  # fmt: skip
SHAPES = [(64,), (8, 3, 3, 3), (1, 1000), (300, 1), (17, 19)]


def there_and_back(values: np.ndarray, bits: int) -> tuple[Array, np.ndarray]:
    array = encode_array(values, bits)
    assert array.dtype == values.dtype.name
    assert array.shape == values.shape
    back = decode_array(array, shape=values.shape, dtype=values.dtype.name)
    assert back.dtype == values.dtype
    assert back.shape == values.shape
    assert len(array.data) <= values.nbytes
    return array, back


def assert_exact(values: np.ndarray, bits: int) -> None:
    array, back = there_and_back(values, bits)
    assert array.stype == "array-exact/1"
    assert back.tobytes() == values.tobytes()


# Precision


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_both_signs_are_off_by_half_a_step(
    dtype: str, shape: tuple[int, ...], bits: int
) -> None:
    draw = np.random.default_rng(bits)
    values = draw.laplace(size=shape).astype(dtype)
    array, back = there_and_back(values, bits)
    if array.stype == "array-exact/1":
        assert dtype == "float16"
        assert back.tobytes() == values.tobytes()
        return
    assert array.stype == "array-uniform/1"
    doubles = values.astype(np.float64)
    step = np.sqrt(np.mean(doubles**2)) * 2.0 ** (2 - bits)
    # of the step to float32 and of the result to its type
    rounding = np.abs(doubles) * (2.0**-23 + np.finfo(dtype).eps)
    error = np.abs(back.astype(np.float64) - doubles)
    assert (error <= step / 2 + rounding).all()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_positive_entries_are_off_by_half_a_ratio(
    dtype: str, shape: tuple[int, ...], bits: int
) -> None:
    draw = np.random.default_rng(bits)
    values = np.exp(2 * draw.normal(size=shape)).astype(dtype)
    values.flat[::5] = 0
    array, back = there_and_back(values, bits)
    assert np.array_equal(back == 0, values == 0)
    if array.stype == "array-exact/1":
        assert dtype == "float16"
        return
    assert array.stype == "array-log/1"
    positive = values > 0
    octaves = np.log2(back[positive].astype(float) / values[positive].astype(float))
    beta = 2.0 ** (4 - bits)
    # where a result is subnormal in float16, it is one of few numbers
    rounding = 2 * np.finfo(dtype).eps + 1e-12
    assert np.abs(octaves).max() <= beta / 2 + rounding


@given(
    entries=arrays(
        np.float32,
        st.integers(64, 80),
        elements=st.floats(0, allow_infinity=False, width=32)
        | st.sampled_from([0.0, 2.0**-149, 3.4028234663852886e38]),
    ),
    bits=st.sampled_from(BITS),
)
@settings(max_examples=200)
def test_zeros_stay_zeros_and_no_others_do(entries: Entries, bits: int) -> None:
    _, back = there_and_back(entries, bits)
    assert np.array_equal(back == 0, entries == 0)
    assert np.isfinite(back).all()
    assert (back >= 0).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("dtype", FLOATS)
def test_the_smallest_and_the_largest_stay_in_range(dtype: str, bits: int) -> None:
    limits = np.finfo(dtype)
    edges = [limits.smallest_subnormal, limits.tiny, 1.0, limits.max]
    positive = np.array(edges * 40, dtype)
    _, back = there_and_back(positive, bits)
    assert np.isfinite(back).all()
    assert (back > 0).all()
    _, back = there_and_back(np.concatenate([positive, -positive]), bits)
    assert np.isfinite(back).all()


@pytest.mark.parametrize("bits", BITS)
def test_powers_of_two_come_back_exactly(bits: int) -> None:
    """Up to one octave a step; a second moment of 1 is 1."""
    powers = np.ldexp(1.0, np.arange(-149, 128)).astype(np.float32)
    _, back = there_and_back(powers, bits)
    if bits >= 4:
        assert np.array_equal(back, powers)
    ones = np.ones(100, np.float32)
    assert np.array_equal(there_and_back(ones, bits)[1], ones)


def test_decoding_and_encoding_again_changes_nothing_in_octave_steps() -> None:
    """What a device sends back unchanged does not drift."""
    values = np.exp(3 * np.random.default_rng(0).normal(size=500)).astype(np.float32)
    for bits in BITS:
        _, once = there_and_back(values, bits)
        _, twice = there_and_back(once, bits)
        assert np.array_equal(once, twice)


# Exact arrays


@pytest.mark.parametrize("dtype", [*FLOATS, *OTHERS])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (70,), (5, 5, 5)])
def test_every_type_at_32_bits(dtype: str, shape: tuple[int, ...]) -> None:
    """Any bits, so that NaN with a payload and -0.0 are among them."""
    size = prod(shape) * np.dtype(dtype).itemsize
    octets = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    if dtype == "bool":
        octets %= 2
    values = np.frombuffer(octets.tobytes(), dtype).reshape(shape)
    assert_exact(values, EXACT_BITS)


@pytest.mark.parametrize("dtype", OTHERS)
def test_what_is_no_float_is_exact_at_any_bits(dtype: str) -> None:
    assert_exact(np.arange(100).astype(dtype), LEAST_BITS)


def test_what_is_small_or_not_finite_is_exact() -> None:
    draw = np.random.default_rng(0)
    assert_exact(draw.normal(size=15).astype(np.float32), 2)
    assert_exact(np.array(-0.0), 2)
    assert_exact(np.zeros((0, 5), np.float32), 2)
    for odd in (np.nan, np.inf, -np.inf):
        values = draw.normal(size=1000).astype(np.float32)
        values[500] = odd
        assert_exact(values, 2)


@pytest.mark.parametrize("scale", [1e-300, 1e200, 1e-60])
def test_what_float32_has_no_step_for_is_exact(scale: float) -> None:
    assert_exact(np.random.default_rng(0).normal(size=100) * scale, 8)


def test_nan_keeps_its_payload() -> None:
    patterns = np.array([0x7FC00001, 0xFFC12345, 0x80000000, 1], np.uint32)
    assert_exact(np.tile(patterns.view(np.float32), 100), 4)


def test_big_endian_and_strided_arrays() -> None:
    values = np.random.default_rng(0).normal(size=(40, 60)).astype(np.float32)
    for bits in (4, EXACT_BITS):
        wanted = encode_array(values, bits)
        for other in (
            values.astype(">f4"),
            np.asfortranarray(values),
            np.repeat(values, 2, axis=1)[:, ::2],
        ):
            array = encode_array(other, bits)
            assert array.data == wanted.data
            assert array.dtype == "float32"


@pytest.mark.parametrize(
    "values",
    [np.array(["a"]), np.array([object()]), np.zeros(3, "M8[s]"), np.zeros(3, "V4")],
)
def test_other_types_are_refused(values: np.ndarray) -> None:
    with pytest.raises(ValueError, match="an array must be one of bool, int8"):
        encode_array(values, 8)


@pytest.mark.parametrize("bits", [-1, 0, 1, 17, 31, 33, 2.5, "8", None])
def test_other_bits_are_refused(bits: object) -> None:
    with pytest.raises(ValueError, match="bits must be 2 to 16, or 32, got"):
        encode_array(np.zeros(3), bits)  # type: ignore[arg-type]


def test_too_many_dimensions() -> None:
    array, _ = there_and_back(np.zeros((1,) * 32), 8)
    assert len(array.shape) == 32
    with pytest.raises(ValueError, match="at most 32 dimensions can be sent, got 33"):
        encode_array(np.zeros((1,) * 33), 8)


# Sizes


def entropy_bits(integers: np.ndarray) -> float:
    """Bits of all integers by their own frequencies, without what tells these."""
    _, counts = np.unique(integers, return_counts=True)
    return -sum(count * log2(count / integers.size) for count in counts)


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("shape_of", ["normal", "laplace", "standard_t"])
def test_size_is_near_the_entropy(shape_of: str, bits: int) -> None:
    """At most 0.7% more in ten seeds, header and all."""
    draw = np.random.default_rng(bits)
    arguments = (5,) if shape_of == "standard_t" else ()
    values = getattr(draw, shape_of)(*arguments, size=50_000).astype(np.float32)
    array, _ = there_and_back(values, bits)
    step = np.float32(np.sqrt(np.mean(values.astype(float) ** 2)) * 2.0 ** (2 - bits))
    floor = entropy_bits(np.rint(values / np.float64(step)))
    assert floor <= 8 * len(array.data) <= 1.02 * floor


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_second_moments_are_near_their_entropy(bits: int) -> None:
    """At most 0.7% more in ten seeds, header and all."""
    values = np.exp(3 * np.random.default_rng(bits).normal(size=50_000))
    array, _ = there_and_back(values.astype(np.float32), bits)
    floor = entropy_bits(np.rint(np.log2(values) * 2.0 ** (bits - 4)))
    assert floor <= 8 * len(array.data) <= 1.02 * floor


def test_gaussian_entries_take_their_bits() -> None:
    values = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    for bits in range(3, 13):
        array, _ = there_and_back(values, bits)
        assert bits < 8 * len(array.data) / values.size < bits + 0.1


def test_headers_are_small() -> None:
    """Of a convolution of one channel: 4 bits are 72 bytes, and the rest is 17."""
    values = np.random.default_rng(0).normal(size=(16, 1, 3, 3)).astype(np.float32)
    array, _ = there_and_back(values, 4)
    assert len(array.data) <= 95


def test_constants_take_next_to_nothing() -> None:
    assert len(encode_array(np.zeros(10**6, np.float32), 8).data) == 0
    assert len(encode_array(np.full(10**6, 0.1, np.float32), 8).data) == 6


# What the receiver knows


def test_what_is_wanted_is_checked_before_memory_is_taken() -> None:
    zeros = encode_array(np.zeros(64, np.float32), 4)
    bomb = Array(dtype="float32", shape=(10**9,), stype=zeros.stype, data=zeros.data)
    with pytest.raises(PayloadError, match="at most 268435456 entries were wanted"):
        decode_array(bomb)
    with pytest.raises(PayloadError, match="at most 64 entries were wanted"):
        decode_array(bomb, max_entries=64)
    with pytest.raises(PayloadError, match=r"shape is \(1000000000,\); \(64,\) was"):
        decode_array(bomb, shape=(64,))
    with pytest.raises(PayloadError, match="dtype is float32; float64 was wanted"):
        decode_array(zeros, dtype="float64")
    assert decode_array(zeros, max_entries=64).shape == (64,)
    empty = encode_array(np.zeros((0, 2**20), np.float32), 4)
    assert decode_array(empty, max_entries=2**20).shape == (0, 2**20)
    with pytest.raises(PayloadError, match="at most 64 entries were wanted"):
        decode_array(empty, max_entries=64)
