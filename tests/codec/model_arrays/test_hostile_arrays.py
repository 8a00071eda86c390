"""Whatever the bytes, decoding ends in `PayloadError` or in finite entries of the claimed type and shape, and the
decoder that is made from the document refuses the same ones.
"""

from __future__ import annotations

import random
import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
from flwr.app import Array

from flwr_splitfc.codec import PayloadError
from flwr_splitfc.codec.format.symbols import pack_words, weighted_model
from flwr_splitfc.codec.model_arrays import (
    STYPES,
    decode_array,
    encode_array,
    encode_state,
)
from tests import fixture
from tests.codec import independent_decoder as independent
from tests.codec.test_hostile_bytes import flips, mutated
from tests.fixture import ArrayVector, little_endian

VECTORS = fixture.array_vectors()
CODED = [vector for vector in VECTORS if vector.stype != "array-exact/1"]


def outcome(array: Array) -> bytes | None:
    """The decoded entries, or None where the package refuses."""
    try:
        decoded = decode_array(array, shape=array.shape)
    except PayloadError:
        return None
    assert decoded.shape == array.shape
    assert decoded.dtype == array.dtype
    if array.stype != "array-exact/1":
        assert np.isfinite(decoded).all()
    if array.stype == "array-log/1":
        assert (decoded >= 0).all()
    return little_endian(decoded)


def agreed_outcome(array: Array) -> bytes | None:
    """The same, and the independent decoder agrees."""
    found = outcome(array)
    try:
        expected = independent.decode_array(
            array.stype, array.dtype, array.shape, array.data
        )
    except independent.Refused:
        expected = None
    assert found == expected, (array.stype, array.dtype, array.shape, array.data.hex())
    return found


@pytest.mark.parametrize("vector", VECTORS, ids=fixture.ids(VECTORS))
def test_every_truncation_is_refused(vector: ArrayVector) -> None:
    for size in range(len(vector.payload)):
        found = agreed_outcome(vector.array(vector.payload[:size]))
        # nothing at all is legal there, and zeros
        if size == 0 and vector.stype == "array-uniform/1":
            assert found == bytes(len(vector.decoded))
        else:
            assert found is None
    for extra in (b"\0", b"\1\0\0\0", bytes(4), bytes(8), bytes(64)):
        assert agreed_outcome(vector.array(vector.payload + extra)) is None


@pytest.mark.parametrize("vector", CODED, ids=fixture.ids(CODED))
@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.extended)])
def test_flipped_bits_are_refused_or_legal(vector: ArrayVector, step: int) -> None:
    for data in flips(vector.payload, step):
        agreed_outcome(vector.array(data))
    assert outcome(vector.array()) == vector.decoded


@pytest.mark.parametrize(
    "count", [2_000, pytest.param(50_000, marks=pytest.mark.extended)]
)
def test_mutated_payloads(count: int) -> None:
    draw = random.Random(count)
    decoded = 0
    for _ in range(count):
        vector = draw.choice(VECTORS)
        data = mutated(vector.payload, draw.choice(VECTORS).payload, draw)
        array = vector.array(data)
        if draw.random() < 0.1:
            array.stype = draw.choice(STYPES)
        if draw.random() < 0.1:
            array.dtype = draw.choice(["float16", "float32", "float64", "int64"])
        if draw.random() < 0.1:
            array.shape = tuple(
                draw.choices([0, 1, 2, 3, 64, 100], k=draw.randrange(3))
            )
        decoded += agreed_outcome(array) is not None
    assert count // 100 < decoded < count


def test_random_bytes() -> None:
    draw = random.Random(3)
    for vector in VECTORS:
        for size in (0, 1, 4, 6, 17, 300):
            agreed_outcome(vector.array(draw.randbytes(size)))
            agreed_outcome(vector.array(bytes(size)))
            agreed_outcome(vector.array(b"\xff" * size))


# Headers that lie

STEP = struct.pack("<f", 0.5)
OCTAVES = struct.pack("<i", 2)
"""c = 0 and b = 4."""

ZERO_ALONE = bytes([61, 1])
"""One symbol, the class 0."""


def three_classes(marks: bytes, symbols: list[int]) -> bytes:
    """-1 to 1, a third of the time each, in 64 entries of these symbols."""
    model = weighted_model(np.array([256, 256, 256]))
    words = pack_words([(np.resize(np.array(symbols, np.int32), 64), model)])
    return bytes([60, 3]) + marks + words


EVEN = three_classes(b"\xff\x0f", [0, 1, 2])

LIES: list[tuple[str, bytes, str | None]] = [
    ("uniform", STEP + EVEN, None),
    ("uniform", STEP + ZERO_ALONE, None),
    ("uniform", struct.pack("<f", 3.4e38) + EVEN, None),
    ("uniform", struct.pack("<f", 1e-45) + EVEN, None),
    *[
        ("uniform", struct.pack("<f", step) + EVEN, "a finite positive number was wanted")
        for step in (0.0, -0.0, -1.0, float("inf"), float("-inf"), float("nan"))
    ],
    ("uniform", STEP[:3], "3 bytes left where 4 were wanted"),
    ("uniform", STEP, "0 bytes left where 2 were wanted"),
    ("uniform", STEP + b"\x3d", "1 bytes left where 2 were wanted"),
    ("uniform", STEP + bytes([61, 0]), "0 classes from 0"),
    ("uniform", STEP + bytes([61, 63]), "63 classes from 0"),
    ("uniform", STEP + bytes([122, 2]), "2 classes from 61"),
    ("uniform", STEP + bytes([123, 1]), "1 classes from 62"),
    ("uniform", STEP + bytes([0, 124]), "124 classes from -61"),
    ("uniform", STEP + bytes([0, 123]), "weights end early: 0 bytes left where 62"),
    ("uniform", STEP + bytes([0, 128 + 123]), "weights end early: 0 bytes left where 123"),
    ("uniform", STEP + bytes([60, 3]) + bytes(2), "all 3 weights of classes are 0"),
    ("uniform", STEP + three_classes(b"\xff\x1f", [0]), "not padded with zeros"),
    ("uniform", STEP + bytes([61, 128 + 1]), "weights of eight bits"),
    ("uniform", STEP + bytes([61 + 128, 1, 0xFF]), "zeros are told apart"),
    ("uniform", STEP + ZERO_ALONE + bytes(4), "which are not the 0 that encode them"),
    ("uniform", STEP + ZERO_ALONE + bytes(3), "3 bytes, which are no words"),
    ("uniform", STEP + EVEN[:4], "the stream has 0 bits"),
    ("uniform", STEP + bytes([61 + 61, 1]), "the stream has 0 bits"),
    ("uniform", STEP + bytes([61 + 61, 1]) + bytes(4 * 58), "which are not the"),
    ("log", OCTAVES + EVEN, None),
    ("log", OCTAVES + ZERO_ALONE, None),
    ("log", struct.pack("<i", 15) + ZERO_ALONE, "bits are 17"),
    ("log", struct.pack("<i", 16 * 1100 + 2) + ZERO_ALONE, None),
    ("log", struct.pack("<i", 16 * -1100 + 2) + ZERO_ALONE, None),
    ("log", struct.pack("<i", 16 * 1101 + 2) + ZERO_ALONE, r"beyond 2\^1101"),
    ("log", struct.pack("<i", 16 * -1101 + 2) + ZERO_ALONE, r"beyond 2\^1101"),
    ("log", struct.pack("<i", 2**31 - 16) + ZERO_ALONE, "is beyond"),
    ("log", struct.pack("<i", -(2**31)) + ZERO_ALONE, "is beyond"),
    ("log", struct.pack("<i", 16 * 1100 + 2) + EVEN, r"beyond 2\^1101"),
    ("log", b"", "0 bytes left where 4 were wanted"),
]  # fmt: skip


@pytest.mark.parametrize(("form", "payload", "message"), LIES)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_headers_that_lie(
    form: str, payload: bytes, message: str | None, dtype: str
) -> None:
    array = Array(dtype=dtype, shape=(64,), stype=f"array-{form}/1", data=payload)
    found = agreed_outcome(array)
    if message is None:
        assert found is not None
        return
    with pytest.raises(PayloadError, match=message):
        decode_array(array)


def test_the_largest_integers() -> None:
    """Of 2^31 - 1 there is a class, and of more there is none."""
    place = np.full(64, 2**29 - 1)
    low = pack_words(
        [
            ((place >> 16).astype(np.int32), 2**13),
            ((place & 0xFFFF).astype(np.int32), 2**16),
        ]
    )
    for first, k in ((122, 2**31 - 1), (0, 1 - 2**31)):
        payload = STEP + bytes([first, 1]) + low
        array = Array(dtype="float64", shape=(64,), stype=STYPES[1], data=payload)
        assert agreed_outcome(array) == np.full(64, 0.5 * k).tobytes()
        # beyond the type, it is cut
        array = Array(dtype="float16", shape=(64,), stype=STYPES[1], data=payload)
        half = np.full(64, 65504 * np.sign(k), np.float16)
        assert agreed_outcome(array) == half.tobytes()


# Fields of the array

BAD_FIELDS: dict[str, list[Any]] = {
    "data": [None, "bytes", 7, [1, 2], bytearray(288), memoryview(bytes(288)), np.zeros(288, np.uint8)],
    "dtype": [None, "", "object", "float", "bfloat16", "<f4", ">f4", 32, ["float32"], "float32\0", "x" * 10**6],
    "stype": [None, "", 1, "array-exact", "array-exact/1 ", "array-log/2", "numpy.ndarray", ["array-log/1"], "x" * 10**6],
    "shape": [
        None, 72, "9,8", [9, 8], (9.0, 8), (True, 72), ("9", "8"), ((9,), (8,)), (-9, -8), (9, 8, 2), (2**31, 0),
        (2**64, 2**64), (1,) * 32 + (72,), (1,) * 10**6, (np.int64(9), 8),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value"), [(f, v) for f, values in BAD_FIELDS.items() for v in values]
)
@pytest.mark.parametrize("bits", [4, 32])
def test_fields_that_are_wrong_are_refused(field: str, value: Any, bits: int) -> None:
    values = np.random.default_rng(0).normal(size=(9, 8)).astype(np.float32)
    for known in ({}, {"max_entries": 72}, {"shape": (9, 8), "dtype": "float32"}):
        array = encode_array(values, bits)
        setattr(array, field, value)
        with pytest.raises(PayloadError) as error:
            decode_array(array, **known)
        assert len(str(error.value)) < 500


@pytest.mark.parametrize("stype", STYPES[1:])
def test_only_floats_are_coded_and_only_many_of_them(stype: str) -> None:
    beginnings = {"array-log/1": OCTAVES, "array-uniform/1": STEP}
    payload = beginnings.get(stype, bytes(1) + STEP) + ZERO_ALONE
    for dtype, shape, is_coded in [
        ("int32", (64,), False),
        ("complex64", (64,), False),
        ("float32", (0,), False),
        ("float32", (), False),
        ("float64", (3, 5), False),
        ("float64", (8, 2), True),
    ]:
        array = Array(dtype=dtype, shape=shape, stype=stype, data=payload)
        assert (agreed_outcome(array) is not None) == is_coded


def test_bools_are_zero_or_one() -> None:
    array = Array(dtype="bool", shape=(3,), stype=STYPES[0], data=b"\0\1\2")
    assert agreed_outcome(array) is None
    with pytest.raises(PayloadError, match="a bool is 2; 0 or 1 was wanted"):
        decode_array(array)


# Bombs

ENTRIES = 2**22


def bombs() -> dict[str, bytes]:
    """Payloads of `ENTRIES`: as small, as improbable and as large as they come."""
    draw = np.random.default_rng(0)
    one_in_a_block = np.zeros(ENTRIES, np.float32)
    one_in_a_block[:: 2**16] = 1
    one_in_a_block[1] = -1
    return {
        "uniform nothing": b"",
        "uniform equal": STEP + ZERO_ALONE,
        "uniform rare": encode_array(one_in_a_block, 8).data,
        "uniform long": encode_array(draw.normal(size=ENTRIES).astype("f4"), 16).data,
        "log equal": OCTAVES + ZERO_ALONE,
        "log long": encode_state(draw.random(ENTRIES, "f4"), 16, draw).data,
    }


def test_memory_is_bounded_by_the_claimed_array() -> None:
    """That of docs/wire-format.md, without the range coder's own copies of the words."""
    for name, payload in bombs().items():
        stype = f"array-{name.split()[0]}/1"
        array = Array(dtype="float32", shape=(ENTRIES,), stype=stype, data=payload)
        tracemalloc.start()
        decode_array(array, shape=(ENTRIES,))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        print(f"{name}: {len(payload)} bytes, peak {peak / 2**20:.1f} MiB")
        assert 4 * ENTRIES <= peak <= 4 * ENTRIES + 4 * len(payload) + 8 * 2**20
