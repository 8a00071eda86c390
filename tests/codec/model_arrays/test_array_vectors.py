"""What was saved decodes to the same entries, and the document is enough to decode it."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_splitfc.codec.model_arrays import (
    EXACT_BITS,
    STYPES,
    decode_array,
    encode_array,
    encode_state,
)
from tests import fixture
from tests.codec import independent_decoder as independent
from tests.fixture import ArrayVector, little_endian

VECTORS = fixture.array_vectors()


def header_facts(vector: ArrayVector) -> set[str]:
    """Which parts of the format a coded payload uses."""
    if vector.stype == "array-exact/1" or not vector.payload:
        return {vector.stype, f"{len(vector.payload)} bytes"}
    if vector.stype == "array-levelled/1":
        return {vector.stype, vector.dtype}
    first, classes = vector.payload[4:6]
    symbols = classes % 128 + first // 128
    facts = {vector.stype, vector.dtype}
    facts.add("zeros" if first >= 128 else "no zeros")
    if symbols == 1:
        return facts | {"one symbol"}
    mark_bits = 8 if classes >= 128 else 4
    facts.add(f"{mark_bits} bits a mark")
    facts.add("even marks" if symbols % 2 == 0 else "odd marks")
    return facts


def test_vectors_cover_the_format() -> None:
    facts = {fact for vector in VECTORS for fact in header_facts(vector)}
    assert facts >= {
        *STYPES, "0 bytes", "float16", "float32", "float64", "zeros", "no zeros", "one symbol", "4 bits a mark",
        "8 bits a mark", "even marks", "odd marks",
    }  # fmt: skip


@pytest.mark.parametrize("vector", VECTORS, ids=fixture.ids(VECTORS))
def test_arrays_decode_to_the_saved_entries(vector: ArrayVector) -> None:
    decoded = decode_array(vector.array(), shape=vector.shape, dtype=vector.dtype)
    assert decoded.shape == vector.shape
    assert decoded.dtype == vector.dtype
    assert little_endian(decoded) == vector.decoded
    # the receiver's own, to compute with
    assert decoded.flags.writeable


@pytest.mark.parametrize("vector", VECTORS, ids=fixture.ids(VECTORS))
def test_arrays_agree(vector: ArrayVector) -> None:
    decoded = independent.decode_array(
        vector.stype, vector.dtype, vector.shape, vector.payload
    )
    assert decoded == vector.decoded


@pytest.mark.parametrize("vector", VECTORS, ids=fixture.ids(VECTORS))
def test_the_encoder_chooses_the_saved_form(vector: ArrayVector) -> None:
    """The same bytes too, where no sum of floats is in between."""
    values = np.frombuffer(vector.input, vector.dtype).reshape(vector.shape)
    array = encode_array(values, vector.bits)
    if vector.stype == "array-log/1":
        array = encode_state(values, vector.bits, np.random.default_rng(0))
    assert array.stype == vector.stype
    if vector.stype == "array-exact/1":
        assert array.data == vector.payload == vector.decoded


def assert_agrees(values: np.ndarray, bits: int) -> None:
    state = encode_state(values, bits, np.random.default_rng(0))
    for array in (encode_array(values, bits), state):
        decoded = independent.decode_array(
            array.stype, array.dtype, array.shape, array.data
        )
        assert decoded == little_endian(decode_array(array))


@given(
    dtype=st.sampled_from(["float16", "float32", "float64"]),
    bits=st.sampled_from([*range(2, 17), EXACT_BITS]),
    count=st.integers(60, 200),
    spread=st.floats(0, 30),
    positive=st.booleans(),
    zeros=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=150, deadline=None)
def test_any_array_agrees(
    dtype: str,
    bits: int,
    count: int,
    spread: float,
    positive: bool,
    zeros: float,
    seed: int,
) -> None:
    draw = np.random.default_rng(seed)
    values = draw.normal(size=count) * np.exp(spread * draw.normal(size=count))
    limit = float(np.finfo(dtype).max)
    values = np.clip(values, -limit, limit)
    values[draw.random(count) < zeros] = 0
    if positive:
        values = np.abs(values)
    assert_agrees(values.astype(dtype), bits)


@pytest.mark.parametrize("bits", [2, 8])
def test_more_than_a_block_agrees(bits: int) -> None:
    draw = np.random.default_rng(bits)
    values = draw.normal(size=2**16 + 3).astype(np.float32)
    assert_agrees(values, bits)
    assert_agrees(np.maximum(values, 0), bits)


def test_the_range_of_octaves() -> None:
    """Just within, and just beyond, at the class of 0 alone."""
    header = bytes([61, 1])
    for octave in (-1100, -1074, 0, 1024, 1100):
        payload = struct.pack("<i", 16 * octave + 2) + header
        decoded = independent.decode_array("array-log/1", "float64", (16,), payload)
        vector = ArrayVector("array-log/1", "", "float64", (16,), 4, b"", payload, b"")
        assert little_endian(decode_array(vector.array())) == decoded
        assert np.isfinite(np.frombuffer(decoded)).all()
        assert np.frombuffer(decoded).min() > 0
