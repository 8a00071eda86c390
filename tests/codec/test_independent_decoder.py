"""The document is enough: a decoder made from it agrees with the package, bit by bit."""

from __future__ import annotations

import ast
import re
import struct
import sys
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_splitfc.codec import codec_names, codec_settings, cut_codec, pack_labels
from flwr_splitfc.codec.format.symbols import pack_symbols
from tests import fixture
from tests.codec import independent_decoder as independent
from tests.fixture import LabelVector, MatrixVector, raw

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs/wire-format.md").read_text()
MATRICES, LABELS = fixture.matrix_vectors(), fixture.label_vectors()


def packed(values: list[float]) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def decoded_independently(
    vector: MatrixVector, shape: tuple[Any, ...], stype: str, payload: bytes
) -> bytes:
    if vector.direction == "features":
        values, _ = independent.decode_features(
            stype,
            shape,
            payload,
            agreed=vector.stype,
            most_rows=vector.rows,
            columns=vector.width,
            channel_dim=vector.config.get("channel-dim"),
        )
        return packed(values)
    scale = (
        None
        if vector.scale is None
        else [x for (x,) in struct.iter_unpack("<f", vector.scale)]
    )
    kept: Any = list(range(vector.width)) if vector.columns is None else vector.columns
    if vector.channels is not None:
        layout = independent.layout_of(
            vector.features_shape, vector.channels, vector.channel_dim
        )
        sent_rows = vector.samples or list(range(vector.rows))
        kept = independent.Sent(sent_rows, layout, vector.levelled)
    return packed(
        independent.decode_gradient(
            stype,
            shape,
            payload,
            agreed=vector.stype,
            rows=vector.rows,
            columns=vector.width,
            kept=kept,
            scale=scale,
        )
    )


def test_only_the_standard_library_is_used() -> None:
    tree = ast.parse(Path(independent.__file__).read_text())
    imported = {
        name.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for name in node.names
    }
    imported |= {
        node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
    }
    assert {name.split(".")[0] for name in imported} <= sys.stdlib_module_names


@pytest.mark.parametrize("vector", MATRICES, ids=fixture.ids(MATRICES))
def test_matrices_agree(vector: MatrixVector) -> None:
    assert (
        decoded_independently(vector, vector.shape, vector.stype, vector.payload)
        == vector.decoded
    )


@pytest.mark.parametrize("vector", LABELS, ids=fixture.ids(LABELS))
def test_labels_agree(vector: LabelVector) -> None:
    assert independent.decode_labels(vector.payload, 100) == (
        vector.dtype,
        vector.shape,
        vector.entries,
    )


@given(
    name=st.sampled_from(codec_names()),
    rows=st.integers(1, 12),
    columns=st.integers(1, 40),
    bits=st.floats(0.3, 40),
    reduction=st.floats(1, 8),
    spread=st.floats(0, 30),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=150)
def test_any_payload_agrees(
    name: str,
    rows: int,
    columns: int,
    bits: float,
    reduction: float,
    spread: float,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    settings = {"reduction": reduction, "correction": 0.0}
    own = {key: value for key, value in settings.items() if key in codec_settings(name)}
    cut = cut_codec(name, uplink_bits=bits, downlink_bits=bits, **own)
    scales = 10 ** (spread * (torch.rand(columns, generator=generator) - 0.5))
    features, gradient = torch.randn(2, rows, columns, generator=generator) * scales

    up, link = cut.encode_features(features, generator=generator, full_rows=rows + 1)
    seen, server_link = cut.decode_features(up, expect=(rows, columns))
    values, kept = independent.decode_features(
        up.stype, up.shape, up.data, agreed=cut.stype, most_rows=rows, columns=columns
    )
    assert packed(values) == raw(seen)
    if isinstance(kept, independent.Sent):
        assert kept.rows == (
            list(range(rows))
            if server_link.samples is None
            else server_link.samples.tolist()
        )
    else:
        assert kept == (
            list(range(columns))
            if server_link.columns is None
            else server_link.columns.tolist()
        )

    down = cut.encode_gradient(gradient, server_link, full_rows=rows + 1)
    scale = None if link.scale is None else link.scale.tolist()
    back = independent.decode_gradient(
        down.stype,
        down.shape,
        down.data,
        agreed=cut.stype,
        rows=rows,
        columns=columns,
        kept=kept,
        scale=scale,
    )
    assert packed(back) == raw(cut.decode_gradient(down, link))


@given(
    st.sampled_from(
        [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
    ),
    st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-5, 5), max_size=20),
)
def test_any_labels_agree(dtype: torch.dtype, values: list[int]) -> None:
    labels = torch.tensor(values, dtype=torch.int64).to(dtype)
    name = str(dtype).removeprefix("torch.")
    assert independent.decode_labels(pack_labels(labels), 100) == (
        name,
        (len(values),),
        raw(labels),
    )


class SlowEncoder(independent.Words):
    """Of symbols with so many levels each, and it knows how far it carried."""

    def __init__(self) -> None:
        super().__init__()
        self.longest_carry = 0

    def carry(self) -> None:
        if self.low >= 2**64:
            ones = takewhile(lambda word: word == 2**32 - 1, reversed(self.words))
            self.longest_carry = max(self.longest_carry, len(list(ones)) + 1)
        super().carry()

    def encode(self, k: int, Q: int) -> None:
        p = 2**24 // Q
        self.take(k * p, p if k < Q - 1 else 2**24 - k * p)

    def across(self, Q: int) -> int:
        """The symbol whose interval reaches across the next carry, or is next to it."""
        p, scale = 2**24 // Q, self.range >> 24
        return min((2**64 - 1 - self.low) // (scale * p), Q - 1)


@given(
    st.lists(
        st.tuples(
            st.integers(2, 2**16),
            st.sampled_from(["any", "last", "across"]),
            st.integers(0, 2**16),
        )
    )
)
@settings(max_examples=300)
def test_any_symbols_are_coded_alike(choices: list[tuple[int, str, int]]) -> None:
    assert_coded_alike(choices)


@pytest.mark.parametrize("levels", [2, 7, 65536])
def test_carries_run_through_many_words(levels: int) -> None:
    choices = [(levels, "across", 0)] * 400
    assert assert_coded_alike([*choices, *[(7, "any", 0)] * 60]).longest_carry == 0
    assert assert_coded_alike([*choices, *[(7, "last", 0)] * 60]).longest_carry > 10


def assert_coded_alike(choices: list[tuple[int, str, int]]) -> SlowEncoder:
    encoder, symbols = SlowEncoder(), []
    for levels, kind, number in choices:
        symbols.append(
            {
                "any": number % levels,
                "last": levels - 1,
                "across": encoder.across(levels),
            }[kind]
        )
        encoder.encode(symbols[-1], levels)
    levels_of = [levels for levels, _, _ in choices]
    runs = [(np.array(symbols, np.int32), np.array(levels_of, np.int32))]
    data = pack_symbols(runs if symbols else [])
    words = encoder.finish() if symbols else []
    assert data == (
        struct.pack(f"<{len(words) + 1}I", len(words), *words) if words else b""
    )
    stream = independent.Stream(independent.Reader(data))
    assert not symbols or stream.has(len(symbols))
    assert [stream.symbol(levels) for levels in levels_of] == symbols
    stream.end()
    return encoder


def example(name: str) -> bytes:
    match = re.search(rf"<!-- example: {name} -->\n((?: {{4}}.*\n)+)", DOCUMENT)
    assert match is not None
    return bytes.fromhex(match[1])


def test_the_worked_example_is_right() -> None:
    payload = example("payload")
    values, kept = independent.decode_features(
        "splitfc/1", (2, 9), payload, agreed="splitfc/1", most_rows=2, columns=9
    )
    assert packed(values) == example("decoded")
    assert kept == [0, 2, 3, 8]
    fields = re.findall(
        r"^\| `([0-9a-f]{2}[0-9a-f ]*)` \| `?[A-Za-z]", DOCUMENT, re.MULTILINE
    )
    assert bytes.fromhex("".join(fields)) == payload
    stream = independent.Stream(independent.Reader(payload[-12:]))
    row = r"^\| .* \| ?([0-9]*) \| `([0-9a-f]+)` \| `([0-9a-f]+)` \| `([0-9a-f]+)` \| ?([0-9]*) \|$"
    steps = re.findall(row, DOCUMENT, re.MULTILINE)
    assert len(steps) == 11
    for levels, *state, symbol in steps:
        assert [int(number, 16) for number in state] == [
            stream.low,
            stream.range,
            stream.point,
        ]
        if levels:
            assert stream.symbol(int(levels)) == int(symbol)


def test_the_tables_of_levels_are_right() -> None:
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) \| ([\d.]+) \|$", DOCUMENT, re.MULTILINE)
    assert [int(q) for q, _, _ in rows] == [2, 3, 4, 65535]
    for q, t, s in rows:
        assert independent.table_t()[int(q) - 2] == float(t)
        assert independent.s_of(int(q)) == float(s)
