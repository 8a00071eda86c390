"""Codecs by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from flwr_splitfc.codec import (
    AllColumns,
    CodecEntry,
    FeatureDropout,
    FeatureQuant,
    Float32,
    catalogue,
    codec_names,
    codec_settings,
    codec_table,
    cut_codec,
    register_codec,
)


@pytest.mark.parametrize("name", codec_names())
def test_config_round_trip(name: str) -> None:
    cut = cut_codec(
        name, uplink_bits=0.3, downlink_bits=1, channel_dim=-1, evaluation="float32"
    )
    assert cut_codec(cut.config()) == cut
    name_and_settings: dict[str, Any] = dict(cut.config())
    assert cut_codec(**name_and_settings) == cut
    assert eval(repr(cut), {"cut_codec": cut_codec}) == cut
    assert all(isinstance(value, str | int | float) for value in cut.config().values())


def test_defaults_and_spelling() -> None:
    cut = cut_codec("splitfc")
    assert (cut.uplink_bits, cut.downlink_bits, cut.selector) == (
        0.2,
        0.4,
        FeatureDropout(),
    )
    assert cut.quantiser == FeatureQuant()
    assert cut_codec({"name": "splitfc", "uplink-bits": 0.1}) == cut_codec(
        "splitfc", uplink_bits=0.1
    )
    assert cut.stype == "splitfc/1"
    assert cut.evaluation_stypes == ("float16/1", "float32/1")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"name": "splitfx"},
            "unknown codec 'splitfx'; known are dropout-only, fedlite, float16, float32",
        ),
        ({"name": 3}, "unknown codec 3"),
        ({"uplink-bits": 1.0}, "has no 'name'"),
        (
            {"name": "splitfc", "reductoin": 8},
            "no setting 'reductoin'; it has .*reduction, uplink_bits",
        ),
        ({"name": "quant-only", "reduction": 8}, "no setting 'reduction'"),
        ({"name": "splitfc", "reduction": 0.5}, "at least 1, got 0.5"),
        ({"name": "splitfc", "reduction": "8"}, "reduction must be float, got '8'"),
        ({"name": "splitfc", "reduction": True}, "reduction must be float, got True"),
        (
            {"name": "splitfc", "uplink-bits": 0},
            "uplink_bits must be above 0 and at most 1000000, got 0.0",
        ),
        (
            {"name": "splitfc", "uplink-bits": 1e308},
            "uplink_bits must be .* at most 1000000, got 1e\\+308",
        ),
        (
            {"name": "splitfc", "downlink-bits": float("nan")},
            "downlink_bits must be .* got nan",
        ),
        (
            {"name": "splitfc", "evaluation": "int8"},
            "one of float16, float32, codec, got 'int8'",
        ),
        ({"name": "splitfc", "channel-dim": 1.5}, "channel_dim must be int, got 1.5"),
        ({"name": "splitfc", "channel-dim": 0}, "channel_dim must not be 0"),
    ],
)
def test_wrong_settings_are_named(config: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cut_codec(config)


def test_the_table_describes_every_codec() -> None:
    assert [entry.name for entry in codec_table()] == codec_names()
    for entry in codec_table():
        cut = cut_codec(entry.name)
        assert type(cut.selector) is entry.selector
        assert type(cut.quantiser) is entry.quantiser
        assert sorted(entry.settings) == codec_settings(entry.name)
        given = {k: v for k, v in entry.settings.items() if v is not None}
        assert cut_codec(entry.name, **given) == cut


@pytest.mark.parametrize("entry", codec_table(), ids=lambda entry: entry.name)
def test_every_part_says_what_it_does_in_a_line(entry: CodecEntry) -> None:
    for part in (entry.selector, entry.quantiser):
        assert part.__doc__ is not None
        line = part.__doc__.partition("\n")[0]
        assert line.endswith(".")
        assert len(line) <= 84
        assert not line.startswith(part.__name__)  # as dataclasses write themselves
        assert line in entry.summary


@pytest.mark.parametrize("name", ["top-s", "rand-top-s"])
def test_the_summary_of_a_codec_of_entries_says_that_budgets_count(name: str) -> None:
    (entry,) = (entry for entry in codec_table() if entry.name == name)
    assert "as the budgets pay for" in entry.summary
    assert "ignores" not in entry.summary
    features = torch.randn(16, 64)
    sizes = []
    for bits in (1.0, 4.0):
        cut = cut_codec(name, uplink_bits=bits, downlink_bits=bits)
        array, _ = cut.encode_features(features)
        sizes.append(len(array.data))
    assert sizes[0] < sizes[1]


@dataclass(frozen=True)
class Halved(Float32):
    """Sends halves.

    A third party's quantiser.
    """

    strength: int = 2


def test_third_parties_register(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "CATALOGUE", dict(catalogue.CATALOGUE))
    register_codec("halved", FeatureDropout, Halved)
    assert "halved" in codec_names()
    assert cut_codec("halved", strength=3).quantiser == Halved(3)
    (entry,) = (entry for entry in codec_table() if entry.name == "halved")
    assert entry.own_settings == {"reduction": None, "strength": 2}
    assert entry.summary.endswith(" Sends halves.")
    with pytest.raises(ValueError, match="'halved' is already"):
        register_codec("halved", AllColumns, Halved)
    with pytest.raises(ValueError, match="must be a Selector class"):
        register_codec("odd", Halved, AllColumns)  # type: ignore[arg-type]


def test_entry_points_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Entry:
        name = "from-afar"

        @staticmethod
        def load() -> object:
            return AllColumns, Halved

    monkeypatch.setattr(
        catalogue, "entry_points", lambda group: [Entry] if "codecs" in group else []
    )
    assert "from-afar" in codec_names()
    assert "from-afar" in [entry.name for entry in codec_table()]
    assert cut_codec("from-afar", strength=5).quantiser == Halved(5)
