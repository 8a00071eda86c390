"""Whatever the bytes, decoding ends in `PayloadError` or in a finite matrix of the agreed shape, soon and in little
memory; and the decoder that is made from the document refuses the same ones.
"""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array

from flwr_splitfc.codec import (
    PayloadError,
    codec_names,
    cut_codec,
    pack_labels,
    unpack_labels,
)
from flwr_splitfc.codec.format.column_sets import pack_columns, pack_selection
from flwr_splitfc.codec.format.label_header import LabelHeader, pack_label_header
from flwr_splitfc.codec.format.symbols import pack_symbols, pack_words
from flwr_splitfc.codec.quantisers.entry.header import LevelHeader, pack_level_header
from flwr_splitfc.codec.quantisers.feature.header import (
    QuantHeader,
    Upgrades,
    pack_quant_header,
)
from flwr_splitfc.codec.quantisers.mask.header import MASK_TOP, pack_mask
from flwr_splitfc.codec.quantisers.transform.transform_quant import TransformQuant
from flwr_splitfc.codec.selectors.entry_selector import pack_entries
from flwr_splitfc.codec.selectors.row_sample import pack_rows
from tests import fixture
from tests.codec.cuts import affordable_cut
from tests.codec.independent_decoder import Refused, decode_labels
from tests.codec.test_independent_decoder import decoded_independently
from tests.fixture import LabelVector, MatrixVector, raw

ROOT = Path(__file__).parents[2]
MATRICES, LABELS = fixture.matrix_vectors(), fixture.label_vectors()
MOST_LABELS = 100
NUMBERS = [
    0,
    1,
    2,
    3,
    199,
    200,
    255,
    2**15,
    2**16 - 1,
    2**16,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 2,
    2**32 - 1,
]
FLOATS = [
    0.0,
    -0.0,
    1e-45,
    1.0,
    -1.0,
    9.9999e37,
    -9.9999e37,
    3e38,
    float("inf"),
    float("-inf"),
    float("nan"),
]


def outcome(vector: MatrixVector, array: Array) -> bytes | None:
    """The decoded floats, or None where the package refuses."""
    try:
        decoded = vector.decode(array)
    except PayloadError:
        return None
    assert decoded.shape[1] == vector.width
    assert decoded.shape[0] <= vector.rows
    assert decoded.dtype == torch.float32
    assert bool(torch.isfinite(decoded).all())
    return raw(decoded)


def agreed_outcome(vector: MatrixVector, array: Array) -> bytes | None:
    """The same, and the independent decoder agrees."""
    found = outcome(vector, array)
    try:
        expected = decoded_independently(vector, array.shape, array.stype, array.data)
    except Refused:
        expected = None
    assert found == expected, (
        vector.stype,
        vector.name,
        array.shape,
        array.stype,
        array.data.hex(),
    )
    return found


def label_outcome(data: bytes) -> bytes | None:
    """Type, shape and entries, or None where the package refuses; the independent decoder agrees."""
    try:
        labels = unpack_labels(data, MOST_LABELS)
        assert labels.numel() <= MOST_LABELS
        found: Any = (
            str(labels.dtype).removeprefix("torch."),
            tuple(labels.shape),
            raw(labels),
        )
    except PayloadError:
        found = None
    try:
        expected: Any = decode_labels(data, MOST_LABELS)
    except Refused:
        expected = None
    assert found == expected, data.hex()
    return None if found is None else found[2]


def flips(data: bytes, step: int = 1) -> Iterator[bytes]:
    """The same bytes with one bit flipped, for every `step`-th bit."""
    for bit in range(0, 8 * len(data), step):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        yield bytes(flipped)


@pytest.mark.parametrize("vector", MATRICES, ids=fixture.ids(MATRICES))
def test_every_truncation_is_refused(vector: MatrixVector) -> None:
    for size in range(len(vector.payload)):
        assert agreed_outcome(vector, vector.array(vector.payload[:size])) is None
    for extra in (b"\0", b"\1\0\0\0", bytes(8), bytes(64)):
        assert agreed_outcome(vector, vector.array(vector.payload + extra)) is None


@pytest.mark.parametrize("vector", MATRICES, ids=fixture.ids(MATRICES))
@pytest.mark.parametrize("step", [9, pytest.param(3, marks=pytest.mark.slow)])
def test_flipped_bits_are_refused_or_legal(vector: MatrixVector, step: int) -> None:
    for data in flips(vector.payload, step):
        agreed_outcome(vector, vector.array(data))
    assert outcome(vector, vector.array()) == vector.decoded  # nothing was left behind


@pytest.mark.parametrize("vector", LABELS, ids=fixture.ids(LABELS))
def test_labels_truncated_or_flipped(vector: LabelVector) -> None:
    for size in range(len(vector.payload)):
        assert label_outcome(vector.payload[:size]) is None
    for extra in (b"\0", b"\1\0\0\0", bytes(8), bytes(64)):
        assert label_outcome(vector.payload + extra) is None
    for data in flips(vector.payload):
        label_outcome(data)
    assert label_outcome(vector.payload) == vector.entries


# Mutations


def mutated(data: bytes, donor: bytes, draw: random.Random) -> bytes:
    """A payload with a few changes of the kinds that formats fear."""
    changed = bytearray(data)
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        size = len(changed)
        at = draw.randrange(size + 1)
        match draw.randrange(9):
            case 0:
                changed[at:] = b""
            case 1:
                changed[at:at] = draw.randbytes(draw.randint(1, 8))
            case 2:
                del changed[at : at + draw.randint(1, 8)]
            case 3:
                changed[at : at + 4] = struct.pack("<I", draw.choice(NUMBERS))
            case 4:
                changed[at : at + 4] = struct.pack("<f", draw.choice(FLOATS))
            case 5:
                changed[at : at + 2] = struct.pack("<H", draw.choice(NUMBERS[:9]))
            case 6:
                cut = draw.randrange(len(donor) + 1)
                changed[at:] = donor[cut:]
            case 7:
                for i in range(at, min(at + draw.randint(1, 4), size)):
                    changed[i] = draw.randrange(256)
            case 8 if at < size:
                changed[at] ^= 1 << draw.randrange(8)
    return bytes(changed)


def stream_offset(payload: bytes) -> int | None:
    """Where a field that could be the number of words stands."""
    offsets = range(len(payload) - 7)
    return next(
        (
            at
            for at in offsets
            if payload[at : at + 4] == struct.pack("<I", (len(payload) - at) // 4 - 1)
        ),
        None,
    )


def counted(data: bytes, at: int | None) -> bytes:
    if at is None or len(data) < at + 8:
        return data
    words = (len(data) - at) // 4 - 1
    return data[:at] + struct.pack("<I", words) + data[at + 4 : at + 4 + 4 * words]


def mutated_array(vector: MatrixVector, draw: random.Random) -> Array:
    """A changed payload; half of the time its word count is right again, now and then format or shape are not."""
    data = mutated(vector.payload, draw.choice(MATRICES).payload, draw)
    if draw.random() < 0.5:
        data = counted(data, stream_offset(vector.payload))
    array = vector.array(data)
    if draw.random() < 0.05:
        array.stype = draw.choice(MATRICES).stype
    if draw.random() < 0.05:
        array.shape = tuple(
            draw.choice([1, vector.rows, vector.width, *NUMBERS])
            for _ in range(draw.randrange(1, 9))
        )
    return array


def run_mutations(count: int, seed: int) -> dict[str, int]:
    """How many payloads were refused, and how many decoded, of `count` each."""
    draw, counts = (
        random.Random(seed),
        {"refused": 0, "decoded": 0, "labels refused": 0, "labels decoded": 0},
    )
    for _ in range(count):
        vector = draw.choice(MATRICES)
        array = mutated_array(vector, draw)
        if (
            vector.direction == "features"
            and array.stype in vector.cut.evaluation_stypes
            and array.stype != vector.stype
        ):
            # the package's codec takes all; the exchange takes the agreed one
            array.stype = vector.stype
        counts["refused" if agreed_outcome(vector, array) is None else "decoded"] += 1
    for _ in range(count // 10):
        data = mutated(draw.choice(LABELS).payload, draw.choice(LABELS).payload, draw)
        counts[
            "labels refused" if label_outcome(data) is None else "labels decoded"
        ] += 1
    return counts


@pytest.mark.parametrize(
    "count",
    [
        2_000,
        pytest.param(10_000, marks=pytest.mark.extended),
        pytest.param(100_000, marks=pytest.mark.slow),
    ],
)
def test_mutated_payloads(count: int) -> None:
    counts = run_mutations(count, seed=count)
    assert min(counts.values()) >= count // 1_000, counts


def test_a_step_without_coefficients_is_zeros() -> None:
    """No encoder of this package writes it; a mutation was the first."""
    vector = next(
        v
        for v in MATRICES
        if (v.stype, v.name) == ("splitfc-rd/4", "some-rows-features")
    )
    data = bytes.fromhex(
        "0400000012000000fcff0f01d547400101010b000000fdd633d9853c097b3a68ef5ecce3266989"
        "2c9e10e91b7f5a288d80338c9e14a4feff9a19321ec24600aef1ab"
    )
    assert agreed_outcome(vector, vector.array(data)) == bytes(4 * 20 * 48)


def test_random_bytes() -> None:
    draw = random.Random(2)
    for vector in MATRICES:
        for size in (0, 1, 4, 17, len(vector.payload), 300):
            agreed_outcome(vector, vector.array(draw.randbytes(size)))
            agreed_outcome(vector, vector.array(bytes(size)))
            agreed_outcome(vector, vector.array(b"\xff" * size))


# Fields of the array


def one_of_each_codec() -> list[MatrixVector]:
    """A vector of each format and direction, and that of the shape that lies below."""
    first = {(vector.stype, vector.direction): vector for vector in reversed(MATRICES)}
    mixed = [vector for vector in MATRICES if vector.name.startswith("mixed-")]
    return [*first.values(), *mixed]


BAD_FIELDS: dict[str, list[Any]] = {
    "data": [None, "bytes", 7, [1, 2], bytearray(16), memoryview(bytes(16)), np.zeros(4, np.uint8)],
    "dtype": [None, "", "float64", "object", 32, "float32\0"],
    "stype": [None, "", 1, "splitfc", "splitfc/1 ", "splitfc/01", "numpy.ndarray", "float16/2"],
    "shape": [
        None, 5, "16,20", [16, 20], (), (0, 20), (16, 0), (-16, -20), (16.0, 20), (True, 320), (16, True, 20),
        ("16", "20"), ((16,), (20,)), (2**64, 20), (16, 2**63, 2**63), (17, 20), (16, 19), (1,) * 8 + (16, 20),
        (16, 20) + (1,) * 7, (1,) * 1_000_000, (320,), (np.int64(16), 20),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value"), [(f, v) for f, values in BAD_FIELDS.items() for v in values]
)
def test_fields_that_are_wrong_are_refused(field: str, value: Any) -> None:
    for vector in one_of_each_codec():
        array = vector.array()
        setattr(array, field, value)
        with pytest.raises(PayloadError) as error:
            vector.decode(array)
        assert len(str(error.value)) < 500


@pytest.mark.parametrize("value", BAD_FIELDS["data"])
def test_labels_that_are_no_bytes_are_refused(value: Any) -> None:
    with pytest.raises(PayloadError, match="bytes were wanted"):
        unpack_labels(value, 10)


def test_up_to_eight_dimensions() -> None:
    for name in codec_names():
        cut = affordable_cut(name, 8, 24, 8, 8)
        features = torch.randn(8, 2, 1, 3, 1, 2, 1, 2)
        array, _ = cut.encode_features(features)
        assert cut.decode_features(array, expect=(8, 24))[0].shape == (8, 24)
        with pytest.raises(ValueError, match="at most 8 dimensions can be sent, got 9"):
            cut.encode_features(features[..., None])


# Headers that lie

ROWS, COLUMNS = 256, 4096
"""The agreed matrix: 4 MiB."""


NO_PAYLOADS = [b"", b"\xff" * 64]
"""Of no codec: nothing, and fields that announce as much as they can."""


def quantised(two_stage: int, symbols: bytes, **fields: Any) -> bytes:
    """A quantised matrix of `COLUMNS`, with the first `two_stage` of them sent."""
    settings: dict[str, Any] = {
        "low": -1.0,
        "high": 1.0,
        "multiplier": 1.0,
        "mean_high": 1.0,
        "mean_levels": 2,
    }
    header = QuantHeader(np.arange(two_stage), **{**settings, **fields})
    return pack_quant_header(header, COLUMNS) + symbols


def even(
    name: str, header: LevelHeader, symbols: bytes, legal: bool
) -> tuple[str, bytes, bool]:
    """A matrix of `COLUMNS` kept columns with the same levels everywhere."""
    return (
        name,
        pack_selection(None, COLUMNS) + pack_level_header(header) + symbols,
        legal,
    )


def zeros(words: int) -> bytes:
    return struct.pack("<I", words) + bytes(4 * words)


def all_rows(channels: int) -> bytes:
    """Every row of `channels`, up to the transformed matrix."""
    return pack_rows(None, ROWS, channels)


def levelled(channels: int, octet: int) -> bytes:
    """Every row, and two exponents an octet, which says more than one if it is one."""
    return pack_rows(None, ROWS, channels | 2**31) + bytes([octet]) * -(-channels // 2)


@cache
def transformed_ones() -> bytes:
    """The cheapest legal matrix in which nothing is 0."""
    return TransformQuant().encode(torch.ones(ROWS, COLUMNS), 2**20)


@cache
def transformed_noise() -> bytes:
    """As large as they come."""
    return TransformQuant().encode(torch.randn(ROWS, COLUMNS), 3 * 2**20)


def codebooks() -> Iterator[tuple[bytes, bool]]:
    """Of few and many centroids, announced or there."""
    for length, groups, count in [
        (1, 1, 2),
        (2, 1, 65535),
        (4, 1024, 256),
        (COLUMNS - 1, 2, 128),
        (1, COLUMNS, 256),
    ]:
        header = struct.pack("<IIHf", length, groups, count, 1.0)
        indices = -(-COLUMNS // length) * ROWS
        stream = pack_symbols([(np.zeros(indices, np.int32), count)])
        yield header, False
        yield header + bytes(2 * length * groups * count), False
        yield header + bytes(2 * length * groups * count) + stream, True
    for length, groups, count in [
        (0, 1, 1),
        (2**32 - 1, 1, 1),
        (1, 2**32 - 1, 1),
        (4096, 1, 257),
        (1, COLUMNS, 257),
    ]:
        yield struct.pack("<IIHf", length, groups, count, 1.0) + bytes(2**21), False
    yield struct.pack("<IIHf", COLUMNS, 1, 1, 1.0) + bytes(2 * COLUMNS), True


def masks() -> Iterator[tuple[bytes, bool]]:
    """Of no, one and all entries, announced or there."""
    entries, rare = ROWS * COLUMNS, [2**24 - 5, 1, 1, 1, 1, 1]
    for sent in (0, 1, entries, entries + 1, 2**32 - 1):
        yield struct.pack("<If6I", sent, 1.0, *rare) + bytes(64), False
    symbols = np.where(np.arange(entries) < entries - 1, 0, MASK_TOP).astype(np.uint8)
    yield pack_mask(symbols, np.ones(1, np.float16), 1.0), True
    yield pack_mask(symbols, np.ones(2, np.float16), 1.0), False
    yield (
        pack_mask(np.full_like(symbols, MASK_TOP), np.ones(entries, np.float16), 1.0),
        True,
    )
    yield (
        pack_mask(np.full_like(symbols, MASK_TOP), np.ones(entries, np.float16), 3e38),
        False,
    )


def label_header(
    shape: tuple[int, ...], coding: str = "range", levels: int = 1, dtype: str = "int64"
) -> bytes:
    return pack_label_header(LabelHeader(dtype, shape, coding, 0, levels))


def symbol_labels(
    count: int, levels: int, values: int, runs: Sequence[tuple[Any, int]] = ()
) -> bytes:
    header = LabelHeader("int64", (count,), "symbols", 0, levels, values)
    return pack_label_header(header) + pack_words(runs)


HALVES = np.arange(2**20, dtype=np.int32) % 2
ONE_OF_A_MILLION = pack_columns(np.array([2**20 - 3]), 2**20 - 1)


@cache
def bombs() -> list[tuple[str, bytes, bool]]:
    """Codec, payload, and whether it is legal: missing words read as zeros, so zeros are."""
    whole = np.concatenate(
        [
            np.tile(np.array([0, 199], np.int32), COLUMNS),
            np.zeros(ROWS * COLUMNS, np.int32),
        ]
    )
    legal = pack_symbols([(whole[: 2 * COLUMNS], 200), (whole[2 * COLUMNS :], 2)])
    half = np.arange(0, COLUMNS, 2)
    ones = np.ones(ROWS * COLUMNS, "<f4").tobytes()
    most = pack_symbols([(whole[2 * COLUMNS :], 2)])
    widest = pack_symbols([(np.arange(ROWS * COLUMNS, dtype=np.int32) % 65536, 65536)])
    return [
        *[(name, data, False) for name in codec_names() for data in NO_PAYLOADS],
        ("quant-only", quantised(COLUMNS, b"", multiplier=3e38), False),
        ("quant-only", quantised(COLUMNS, zeros(1), multiplier=3e38), False),
        (
            "quant-only",
            quantised(COLUMNS, zeros(ROWS * COLUMNS // 32), multiplier=3e38),
            False,
        ),
        (
            "quant-only",
            quantised(COLUMNS, zeros(ROWS * COLUMNS // 2), multiplier=3e38),
            False,
        ),
        ("quant-only", quantised(COLUMNS, b"\xff\xff\xff\xff" + bytes(64)), False),
        ("quant-only", quantised(COLUMNS, legal, multiplier=1e-9), True),
        (
            "quant-only",
            quantised(COLUMNS, legal, multiplier=1e-9, upgrades=Upgrades(2**32 - 1)),
            False,
        ),
        (
            "quant-only",
            quantised(COLUMNS, legal, multiplier=3e38, upgrades=Upgrades(1)),
            False,
        ),
        ("quant-only", quantised(COLUMNS, legal, multiplier=1.0), True),
        ("quant-only", quantised(0, zeros(COLUMNS // 32), mean_levels=2), True),
        ("quant-only", quantised(0, zeros(COLUMNS // 32), mean_levels=65536), True),
        ("quant-only", quantised(0, b"", mean_low=1.0, mean_levels=1), True),
        ("quant-only", struct.pack("<I", 2**32 - 1) + bytes(64), False),
        ("quant-only", struct.pack("<I", COLUMNS + 1) + bytes(64), False),
        ("splitfc", struct.pack("<I", 2**32 - 1) + bytes(64), False),
        (
            "splitfc",
            pack_selection(half, COLUMNS) + struct.pack("<I", 2**32 - 1),
            False,
        ),
        (
            "splitfc",
            pack_selection(None, COLUMNS) + quantised(COLUMNS, legal, multiplier=1e-9),
            True,
        ),
        ("splitfc", pack_selection(half[:0], COLUMNS) + struct.pack("<I", 0), True),
        ("dropout-only", pack_selection(half[:0], COLUMNS), True),
        ("dropout-only", pack_selection(half, COLUMNS) + ones[: len(ones) // 2], True),
        ("dropout-only", pack_selection(half, COLUMNS), False),
        ("top-s", struct.pack("<I", 2**32 - 1) + bytes(64), False),
        ("top-s", struct.pack("<I", COLUMNS), False),
        (
            "top-s",
            pack_entries(np.tile(half, (ROWS, 1)), COLUMNS) + bytes(len(ones) // 4),
            True,
        ),
        ("top-s", pack_entries(np.tile(half[:0], (ROWS, 1)), COLUMNS), True),
        (
            "top-s",
            struct.pack("<I", COLUMNS - 1) + b"\xff" * (ROWS * COLUMNS // 8),
            False,
        ),
        *[("fedlite", payload, legal) for payload, legal in codebooks()],
        *[("mask-encoded", payload, legal) for payload, legal in masks()],
        ("float32", ones, True),
        ("float16", np.ones(ROWS * COLUMNS, "<f2").tobytes(), True),
        even("splitfc-uniform", LevelHeader(2, -1.0, 1.0), most, True),
        even("splitfc-uniform", LevelHeader(65536, -1.0, 1.0), most, True),
        even(
            "splitfc-uniform",
            LevelHeader(65536, -1.0, 1.0),
            zeros(ROWS * COLUMNS // 32 - 1),
            False,
        ),
        even("splitfc-easy", LevelHeader(1, 1.0, 1.0), b"", True),
        even("splitfc-easy", LevelHeader(1, 1.0, 1.0), zeros(1), False),
        even("splitfc-power", LevelHeader(2, -1e38, 1e38, 8), most, True),
        even("splitfc-power", LevelHeader(2, -1e38, 1e38, 64), most, False),
        even("splitfc-power", LevelHeader(2, -1.0, 1.0, 255), most, False),
        even("splitfc-power", LevelHeader(65536, -5e4, 5e4, 64), widest, True),
        even("splitfc-noisy", LevelHeader(65536, -1e38, 1e38, 255), widest, True),
        even("splitfc-noisy", LevelHeader(2, -1e38, 1e38, 255), b"", False),
        ("splitfc-rd", struct.pack("<II", COLUMNS, 0), False),
        ("splitfc-rd", struct.pack("<III", 7, ROWS, 0), False),
        ("splitfc-rd", all_rows(1) + struct.pack("<f", 1.0), False),
        ("splitfc-rd", all_rows(1) + struct.pack("<f", -1.0), False),
        (
            "splitfc-rd",
            all_rows(COLUMNS) + struct.pack("<fBBB", 1.0, 255, 0, 0) + zeros(2**12),
            False,
        ),
        (
            "splitfc-rd",
            all_rows(256) + struct.pack("<fBBB", 1.0, 255, 0, 0) + zeros(2**12),
            False,
        ),
        (
            "splitfc-rd",
            all_rows(COLUMNS) + struct.pack("<fBBB", 1.0, 0, 0, 2) + zeros(2**12),
            False,
        ),
        ("splitfc-rd", all_rows(COLUMNS) + struct.pack("<fBBB", 1.0, 0, 0, 0), False),
        ("splitfc-rd", all_rows(COLUMNS) + transformed_ones(), True),
        ("splitfc-rd", levelled(COLUMNS, 255) + transformed_ones(), True),
        ("splitfc-rd", levelled(COLUMNS, 255)[:-1], False),
        ("splitfc-rd", levelled(1, 16) + transformed_ones(), False),
        ("splitfc-rd", struct.pack("<II", 2**32 - 1, ROWS), False),
        ("splitfc-rd", all_rows(COLUMNS | 2**30) + transformed_ones(), False),
        ("splitfc-rd", all_rows(COLUMNS) + transformed_ones()[:-4], False),
        ("splitfc-rd", all_rows(COLUMNS) + transformed_noise(), True),
        (
            "int8",
            np.repeat([-1.0, 1.0], COLUMNS).astype("<f4").tobytes()
            + bytes(ROWS * COLUMNS),
            True,
        ),
        (
            "int8",
            np.repeat([1.0, -1.0], COLUMNS).astype("<f4").tobytes()
            + bytes(ROWS * COLUMNS),
            False,
        ),
    ]


LABEL_BOMBS = [
    (label_header((2**32 - 1,)), False),
    (label_header((2**32 - 1,) * 8), False),
    (label_header((0, *(2**32 - 1,) * 7), "raw"), False),
    (label_header((2**16, 2**16, 2**16, 2**16, 2**16, 0), "raw"), False),
    (label_header((2**20,)), True),
    (label_header((2**20,), dtype="bool"), True),
    (label_header((2**20 + 1,)), False),
    (label_header((2**20,), levels=0), False),
    (label_header((2**20,), levels=65537), False),
    (label_header((2**20,), levels=2**32 - 1), False),
    (label_header((2**20,), levels=65536) + zeros(1), False),
    (label_header((2**20,), levels=65536) + zeros(2**15), True),
    (label_header((2**20,), levels=2) + zeros(2**15), True),
    (label_header((2**20,), "<u4") + bytes(4 * 2**20), True),
    (label_header((2**20,), "<u8") + bytes(8 * 2**20), True),
    (label_header((2**20,), "raw", dtype="float64") + bytes(8 * 2**20), True),
    (label_header((2**20,), "raw", dtype="float64"), False),
    # even symbols
    (symbol_labels(2**20, 0, 0), False),
    (symbol_labels(2**20, 1, 0), True),
    (symbol_labels(2**20, 65537, 0), False),
    (symbol_labels(2**20, 65536, 0) + bytes(4), False),
    (symbol_labels(2**20, 65536, 0) + bytes(2**21), False),
    (symbol_labels(2**20, 2, 0, [(HALVES, 2)]), True),
    # counted ones
    (symbol_labels(2**20, 1, 1), True),
    (symbol_labels(2**20, 1, 2), False),
    (symbol_labels(2**20, 65536, 65536), False),
    (symbol_labels(2**20, 65536, 65535), False),
    (symbol_labels(2**20, 2**64 - 1, 2**64 - 1), False),
    (symbol_labels(2**20, 65536, 2) + bytes(100), False),
    (symbol_labels(2**20, 2, 2) + ONE_OF_A_MILLION, False),
    (symbol_labels(2**20, 2, 2) + ONE_OF_A_MILLION + bytes(8), False),
    (symbol_labels(2**20, 2, 2) + b"\xff" * 2**17, False),
    (pack_labels(torch.arange(2**20) // (2**20 - 1)), True),
    (pack_labels(torch.arange(2**20) % 65535), True),
    (pack_labels(torch.arange(2**20) ** 2 % 65535), True),
]


def decode_bomb(name: str, payload: bytes) -> bool:
    """Whether it is legal."""
    cut = cut_codec(name)
    array = Array("float32", (ROWS, COLUMNS), cut.stype, payload)
    try:
        seen, _ = cut.decode_features(array, expect=(ROWS, COLUMNS))
    except PayloadError:
        return False
    assert seen.shape == (ROWS, COLUMNS)
    assert bool(torch.isfinite(seen).all())
    return True


def decode_label_bomb(payload: bytes) -> bool:
    try:
        return unpack_labels(payload, 2**20).numel() == 2**20
    except PayloadError:
        return False


@pytest.mark.parametrize("index", range(len(bombs())))
def test_matrices_that_lie(index: int) -> None:
    name, payload, legal = bombs()[index]
    assert decode_bomb(name, payload) is legal


@pytest.mark.parametrize(("payload", "legal"), LABEL_BOMBS)
def test_labels_that_lie(payload: bytes, legal: bool) -> None:
    assert decode_label_bomb(payload) is legal


PEAKS = """
import sys
from pathlib import Path
from tests.codec import test_hostile_bytes as hostile
hostile.print_peaks(Path(sys.argv[1]))
"""


def print_peaks(directory: Path) -> None:
    """Memory on top of what stood before, in a process of its own: KiB for matrices, then for labels too."""
    payloads = [
        (path.name.split("@")[0], path.read_bytes())
        for path in sorted(directory.iterdir())
    ]
    for vector in MATRICES:  # tables and lazily loaded code
        outcome(vector, vector.array())
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = peak_kib()
    for name, payload in payloads:
        if name not in ("labels", "splitfc-rd"):
            decode_bomb(name, payload)
    matrices = peak_kib()
    for name, payload in payloads:
        if name == "labels":
            decode_label_bomb(payload)
    labels = peak_kib()
    for name, payload in payloads:
        if name == "splitfc-rd":
            decode_bomb(name, payload)
    print(matrices - before, labels - before, peak_kib() - before)


def peak_kib() -> int:
    """Of this process so far; unlike `ru_maxrss` it starts anew with each program."""
    status = Path("/proc/self/status").read_text()
    return next(
        int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")
    )


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="reads the peak from /proc"
)
def test_memory_is_bounded_by_the_agreed_matrix(tmp_path: Path) -> None:
    """The bound that docs/wire-format.md states."""
    for index, (name, payload, _) in enumerate(bombs()):
        (tmp_path / f"{name}@{index}").write_bytes(payload)
    for index, (payload, _) in enumerate(LABEL_BOMBS):
        (tmp_path / f"labels@{index}").write_bytes(payload)
    command = [sys.executable, "-c", PEAKS, str(tmp_path)]
    at_once = {
        **os.environ,
        "MALLOC_MMAP_THRESHOLD_": str(2**16),
    }  # what is freed is gone, not kept for the next payload
    run = subprocess.run(command, cwd=ROOT, env=at_once, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    matrices_kib, all_kib, transformed_kib = map(int, run.stdout.split())
    print(
        f"peak: {matrices_kib} KiB for matrices, {all_kib} KiB with labels, {transformed_kib} KiB with transforms"
    )
    assert (
        4 * ROWS * COLUMNS
        <= matrices_kib * 1024
        <= 6 * 4 * ROWS * COLUMNS + 128 * COLUMNS + 4 * 2**20
    )
    assert all_kib * 1024 <= 32 * 2**20
    assert transformed_kib * 1024 <= 32 * 4 * ROWS * COLUMNS + 4 * 2**20


def test_labels_are_refused_before_they_are_made() -> None:
    data = bytearray(pack_labels(torch.arange(4)))
    data[2:6] = struct.pack("<I", MOST_LABELS + 1)
    with pytest.raises(PayloadError, match=f"at most {MOST_LABELS} entries"):
        unpack_labels(bytes(data), MOST_LABELS)
