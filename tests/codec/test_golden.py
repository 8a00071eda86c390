"""What was saved decodes to the same floats, whatever changes in the code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from flwr_splitfc.codec import codec_names, cut_codec, pack_labels, unpack_labels
from flwr_splitfc.codec.format.column_sets import column_set_bytes, unpack_selection
from flwr_splitfc.codec.format.symbols import SymbolReader
from flwr_splitfc.codec.quantisers.feature.header import (
    ENDPOINT_LEVELS,
    unpack_quant_header,
)
from tests import fixture
from tests.fixture import LabelVector, MatrixVector, make, raw

MATRICES, LABELS = fixture.matrix_vectors(), fixture.label_vectors()
EXACT_ENCODERS = ("float32/1", "float16/1")


@pytest.mark.parametrize("name", codec_names())
def test_every_codec_has_vectors_of_its_format(name: str) -> None:
    """A new codec or format needs new vectors: ``python -m tests.fixture.make``."""
    stype = cut_codec(name).stype
    directions = {vector.direction for vector in MATRICES if vector.stype == stype}
    assert directions == {"features", "gradient"}, f"none for {stype}"


@pytest.mark.parametrize("vector", MATRICES, ids=fixture.ids(MATRICES))
def test_matrices_decode_to_the_saved_floats(vector: MatrixVector) -> None:
    assert vector.cut.stype == vector.stype
    assert vector.cut.config() == vector.config
    decoded = vector.decode(vector.array())
    assert decoded.shape == (vector.rows, vector.width)
    assert raw(decoded) == vector.decoded


@pytest.mark.parametrize("vector", LABELS, ids=fixture.ids(LABELS))
def test_labels_come_back(vector: LabelVector) -> None:
    labels = unpack_labels(vector.payload, max_entries=100)
    assert str(labels.dtype) == f"torch.{vector.dtype}"
    assert tuple(labels.shape) == vector.shape
    assert raw(labels) == vector.entries
    if vector.stype == "labels/3":
        assert pack_labels(labels) == vector.payload


@pytest.mark.parametrize(
    "vector", [v for v in MATRICES if v.stype in EXACT_ENCODERS], ids=lambda v: v.name
)
def test_floats_encode_to_the_saved_bytes(vector: MatrixVector) -> None:
    """The other codecs may choose other bytes elsewhere: they sum columns in float32, in an order of the machine's."""
    matrix = torch.from_numpy(
        np.frombuffer(vector.input, "<f4").astype(np.float32)
    ).reshape(vector.shape)
    array = vector.cut.encode_features(matrix)[0]
    assert (array.data, array.stype, array.shape) == (
        vector.payload,
        vector.stype,
        vector.shape,
    )


def test_vectors_cover_the_format() -> None:
    facts = {fact for vector in MATRICES for fact in facts_of(vector)}
    assert facts >= {
        "one row", "no column", "all columns", "bitmap", "elias-fano", "means alone", "two-stage alone", "both",
        "no symbols", "one mean level", "two-stage of one point", "upgrades", "skipped upgrades", "scale",
    }  # fmt: skip


def facts_of(vector: MatrixVector) -> set[str]:
    data, kept, width = memoryview(vector.payload), vector.width, vector.width
    facts = {"one row"} if vector.rows == 1 else set()
    if vector.scale:
        facts.add("scale")
    if vector.columns is not None:
        kept = len(vector.columns)
    if vector.direction == "features" and vector.stype in (
        "splitfc/1",
        "dropout-only/1",
    ):
        columns, rest = unpack_selection(data, width)
        kept = width if columns is None else len(columns)
        facts |= set_facts(kept, width)
        data = rest
    if vector.stype in ("splitfc/1", "quant-only/1"):
        facts |= quantised_facts(data, kept)
    return facts


def set_facts(count: int, total: int) -> set[str]:
    if count in (0, total):
        return {"all columns" if count else "no column"}
    return {"bitmap" if 8 * column_set_bytes(count, total) >= total else "elias-fano"}


def quantised_facts(data: memoryview, columns: int) -> set[str]:
    header, stream = unpack_quant_header(data, columns)
    count = len(header.two_stage)
    facts = {
        "means alone"
        if count == 0
        else "two-stage alone"
        if count == columns
        else "both"
    }
    if len(stream) == 0:
        facts.add("no symbols")
    if count < columns and header.mean_levels == 1:
        facts.add("one mean level")
    if header.upgrades.first:
        facts.add("upgrades")
    if header.upgrades.skipped:
        facts.add("skipped upgrades")
    ends = SymbolReader(stream).read(2 * count, ENDPOINT_LEVELS).reshape(count, 2)
    if (ends[:, 0] == ends[:, 1]).any():
        facts.add("two-stage of one point")
    return facts


def test_vectors_are_never_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make, "HERE", tmp_path)
    monkeypatch.setattr(make, "CASES", make.CASES[:1])
    kept = tmp_path / "float32/1/one-row-features.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("the format")
    make.main()
    assert kept.read_text() == "the format"
    made = json.loads((kept.parent / "one-row-gradient.json").read_text())
    assert made["direction"] == "gradient"


def test_a_codec_without_cases_gets_vectors_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make, "HERE", tmp_path)
    monkeypatch.setattr(make, "CASES", [])
    make.main()
    for name in codec_names():
        for direction in ("features", "gradient"):
            path = tmp_path / cut_codec(name).stype / f"default-{direction}.json"
            assert json.loads(path.read_text())["direction"] == direction


def test_vectors_are_small() -> None:
    assert sum(path.stat().st_size for path in fixture.HERE.rglob("*.json")) < 400_000
