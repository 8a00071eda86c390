"""Model arrays come back as precisely as their bits say, in as few bytes."""

from __future__ import annotations

from collections.abc import Callable
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
    encode_state,
)

Entries = NDArray[np.float32]
Encode = Callable[[np.ndarray, int], Array]

BITS = range(LEAST_BITS, MOST_BITS + 1)
FLOATS = ["float16", "float32", "float64"]
OTHERS = [
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "complex64", "complex128",
]  # fmt: skip
SHAPES = [(64,), (8, 3, 3, 3), (1, 1000), (300, 1), (17, 19)]


def encode_drawn(values: np.ndarray, bits: int) -> Array:
    return encode_state(values, bits, np.random.default_rng(0))


def there_and_back(
    values: np.ndarray, bits: int, encode: Encode = encode_array
) -> tuple[Array, np.ndarray]:
    array = encode(values, bits)
    assert array.dtype == values.dtype.name
    assert array.shape == values.shape
    back = decode_array(array, shape=values.shape, dtype=values.dtype.name)
    assert back.dtype == values.dtype
    assert back.shape == values.shape
    assert len(array.data) <= values.nbytes
    return array, back


def assert_exact(values: np.ndarray, bits: int) -> None:
    for encode in (encode_array, encode_drawn):
        array, back = there_and_back(values, bits, encode)
        assert array.stype == "array-exact/1"
        assert back.tobytes() == values.tobytes()


# Precision


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("encode", "most_steps"), [(encode_array, 0.5), (encode_drawn, 1.0)]
)
def test_entries_are_off_by_half_a_step_and_drawn_ones_by_one(
    encode: Encode, most_steps: float, dtype: str, shape: tuple[int, ...], bits: int
) -> None:
    draw = np.random.default_rng(bits)
    values = draw.laplace(size=shape).astype(dtype)
    array, back = there_and_back(values, bits, encode)
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
    assert (error <= most_steps * step + rounding).all()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_positive_state_is_off_by_a_ratio(
    dtype: str, shape: tuple[int, ...], bits: int
) -> None:
    draw = np.random.default_rng(bits)
    values = np.exp(2 * draw.normal(size=shape)).astype(dtype)
    values.flat[::5] = 0
    array, back = there_and_back(values, bits, encode_drawn)
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
    assert np.abs(octaves).max() <= beta + rounding


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
    _, back = there_and_back(entries, bits, encode_drawn)
    assert np.array_equal(back == 0, entries == 0)
    assert np.isfinite(back).all()
    assert (back >= 0).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("dtype", FLOATS)
def test_the_smallest_and_the_largest_stay_in_range(dtype: str, bits: int) -> None:
    limits = np.finfo(dtype)
    edges = [limits.smallest_subnormal, limits.tiny, 1.0, limits.max]
    positive = np.array(edges * 40, dtype)
    _, back = there_and_back(positive, bits, encode_drawn)
    assert np.isfinite(back).all()
    assert (back > 0).all()
    for encode in (encode_array, encode_drawn):
        both = np.concatenate([positive, -positive])
        assert np.isfinite(there_and_back(both, bits, encode)[1]).all()


@pytest.mark.parametrize("bits", BITS)
def test_powers_of_two_come_back_exactly(bits: int) -> None:
    """Up to one octave a step; a second moment of 1 is 1."""
    powers = np.ldexp(1.0, np.arange(-149, 128)).astype(np.float32)
    _, back = there_and_back(powers, bits, encode_drawn)
    if bits >= 4:
        assert np.array_equal(back, powers)
    ones = np.ones(100, np.float32)
    assert np.array_equal(there_and_back(ones, bits, encode_drawn)[1], ones)


def test_decoding_and_encoding_again_changes_nothing_in_octave_steps() -> None:
    """What a device sends back unchanged does not drift: powers of 2 to the bit."""
    values = np.exp(3 * np.random.default_rng(0).normal(size=500)).astype(np.float32)
    for bits in (2, 3, 4):
        _, once = there_and_back(values, bits, encode_drawn)
        _, twice = there_and_back(once, bits, encode_drawn)
        assert np.array_equal(once, twice)


# Right on average

DRAWS = 400


def mean_of_draws(values: np.ndarray, bits: int, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    total = np.zeros(values.shape)
    for _ in range(DRAWS):
        total += decode_array(encode_state(values, bits, draw)).astype(np.float64)
    return total / DRAWS


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_second_moments_are_right_on_average(bits: int) -> None:
    """Within 2.8 of these deviations in ten seeds; to the nearest, 7 to 19."""
    values = np.exp(2 * np.random.default_rng(0).normal(size=100))
    most_deviation = values * (2.0**2.0 ** (4 - bits) - 1) / 2
    error = np.abs(mean_of_draws(values, bits) - values)
    assert (error <= 5 * most_deviation / np.sqrt(DRAWS)).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_state_of_both_signs_is_right_on_average_and_zero_below_half_a_step(
    bits: int,
) -> None:
    values = np.random.default_rng(0).normal(size=100)
    step = np.sqrt(np.mean(values**2)) * 2.0 ** (2 - bits)
    mean = mean_of_draws(values, bits)
    is_small = np.abs(values) < 0.49 * step
    assert (mean[is_small] == 0).all()
    large = np.abs(values) > 0.51 * step
    error = np.abs(mean - values)[large]
    assert (error <= 6 * 0.5 * step / np.sqrt(DRAWS)).all()


@pytest.mark.parametrize("bits", [3, 4])
def test_a_slow_average_falls_through_the_code(bits: int) -> None:
    """By 1 % a turn, as in ten steps of Adam, each turn coded anew."""
    moments = np.random.default_rng(0).uniform(0.5, 2, 1000)
    fallen = 0.99**200 * moments
    draw = np.random.default_rng(1)
    for _ in range(200):
        moments = decode_array(encode_state(0.99 * moments, bits, draw))
    # 0.87 to 1.14 in ten seeds; to the nearest, none falls: 5.8 to 7.9
    assert 0.5 < moments.mean() / fallen.mean() < 2


def test_momentum_dies_down_where_gradients_end() -> None:
    """By 10 % a turn, in turns of one step; to the nearest, it never does."""
    moving = np.resize([1.0, -1.0], 500)
    ending = np.full(500, 0.3)
    draw = np.random.default_rng(0)
    for _ in range(200):
        momentum = np.concatenate([moving, 0.9 * ending])
        ending = decode_array(encode_state(momentum, 4, draw))[500:]
    assert not ending.any()


def test_a_draw_gives_the_same_bytes_again() -> None:
    values = np.random.default_rng(0).normal(size=1000)
    for state in (values, values**2):
        first, again, other = [
            encode_state(state, 4, np.random.default_rng(seed)).data
            for seed in (7, 7, 8)
        ]
        assert first == again != other


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bits", [3, 4, 6, 16])
@pytest.mark.parametrize("shape", [(32, 20), (12, 10, 3, 3), (1, 40, 30)])
@pytest.mark.parametrize(
    ("encode", "most_steps"), [(encode_array, 0.5), (encode_drawn, 1.0)]
)
def test_columns_of_any_scale_are_as_precise_as_the_largest(
    encode: Encode, most_steps: float, shape: tuple[int, ...], bits: int, dtype: str
) -> None:
    """With one step for all, the small ones were all zero."""
    draw = np.random.default_rng(bits)
    along = [size if dim == 1 else 1 for dim, size in enumerate(shape)]
    scales = 10 ** draw.uniform(-4, 0, along)
    values = (draw.normal(size=shape) * scales).astype(dtype)
    array, back = there_and_back(values, bits, encode)
    assert array.stype == "array-levelled/1"
    others = tuple(dim for dim in range(len(shape)) if dim != 1)
    rms = np.sqrt((values.astype(np.float64) ** 2).mean(others, keepdims=True))
    # powers of two are off by up to sqrt(2), for a column and for the largest
    most = 2 * most_steps * 2.0 ** (2 - bits) * rms
    assert (np.abs(back - values) <= 1.5 * most + np.abs(values) * 2.0**-22).all()


def test_columns_without_entries_come_back_so() -> None:
    values = np.random.default_rng(0).normal(size=(32, 9)) * 4.0 ** -np.arange(9)
    values[:, ::2] = 0
    array, back = there_and_back(values, 6)
    assert array.stype == "array-levelled/1"
    np.testing.assert_array_equal(back.any(0), values.any(0))


@pytest.mark.parametrize("shape", [(8, 4096), (16, 100_000), (64, 72), (3, 40, 3)])
def test_columns_that_differ_by_chance_take_the_bytes_of_one_step(
    shape: tuple[int, ...],
) -> None:
    for seed in range(5):
        values = np.random.default_rng(seed).normal(size=shape)
        assert encode_array(values, 3).stype == "array-uniform/1"


def test_rows_take_the_bytes_of_one_step() -> None:
    """As of an embedding: words that are rare move seldom."""
    words = np.random.default_rng(0).normal(size=(2000, 16))
    words /= np.arange(1, 2001)[:, None]
    array, _ = there_and_back(words, 3)
    assert array.stype == "array-uniform/1"


@pytest.mark.parametrize("bits", [3, 4, 6])
def test_models_are_coded_by_even_steps_whatever_their_signs(bits: int) -> None:
    """By ratio, gains from 0.71 to 1.41 were all 1 at 4 bits."""
    gains = np.random.default_rng(0).uniform(0.5, 1.5, (1, 64))
    array, back = there_and_back(gains, bits)
    assert array.stype == "array-uniform/1"
    assert np.abs(back - gains).max() <= 0.51 * 2.0 ** (2 - bits) * 1.1


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
    # before numpy 2, no array has as many, as numpy says
    with pytest.raises(ValueError, match=r"dimension.* 32.* 33|32 dimensions .*got 33"):
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
    array, back = there_and_back(values.astype(np.float32), bits, encode_drawn)
    floor = entropy_bits(np.rint(np.log2(back) * 2.0 ** (bits - 4)))
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
    assert len(encode_drawn(np.full(10**6, 0.125, np.float32), 8).data) == 6


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
