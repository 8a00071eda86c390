"""The codecs of a run-config: which settings they take, and where those may stand."""

from pathlib import Path

import pytest

from flwr_splitfc.apps.run_codecs import codec_of, output_codec_of
from flwr_splitfc.codec import codec_names
from flwr_splitfc.settings import Scalar
from tests.apps.server_runs import run


def test_a_codec_takes_its_own_settings_and_no_others() -> None:
    config = {
        "strategy": "split-learning",
        "uplink-bits": 0.5,
        "reduction": 4,
        "evaluation": "float32",
        "batch-size": 9,
    }
    assert codec_of(config).config()["name"] == "float32"
    assert "reduction" not in codec_of(config).config()
    cut = codec_of({**config, "codec": "dropout-only", "channel-dim": 2})
    assert cut.config() == {
        "name": "dropout-only",
        "uplink-bits": 0.5,
        "downlink-bits": 0.4,
        "evaluation": "float32",
        "channel-dim": 2,
        "reduction": 4.0,
    }
    for codec in ("", "float32", "splitfc"):  # the key's default among them
        its_own = codec_of({**config, "strategy": "splitfc", "codec": codec})
        assert its_own.config()["name"] == "splitfc"
    with pytest.raises(ValueError, match="unknown codec 'gzip'; known are"):
        codec_of({**config, "codec": "gzip"})


@pytest.mark.parametrize("codec", ["top-s", "gzip", "splitfc", "splitfc-rd"])
@pytest.mark.parametrize("strategy", [{"strategy": "splitfc"}, {}])
def test_strategy_splitfc_refuses_a_codec_that_is_not_its_own(
    codec: str, strategy: dict[str, str]
) -> None:
    config = {**strategy, "codec": codec}
    # without budgets it is splitfc-rd, with them splitfc
    if codec == "splitfc-rd":
        assert codec_of(config).name == codec
        config["uplink-bits"] = 0.2
    with pytest.raises(ValueError, match=f"codec is '{codec}', and strategy is 'split"):
        codec_of(config)


def test_a_codecs_settings_in_one_string() -> None:
    config = {"strategy": "split-learning", "codec": "fedlite", "uplink-bits": 0.5}
    text = "groups=2 correction=0.1 downlink-bits=0.25"
    assert codec_of({**config, "codec-settings": text}) == codec_of(
        {**config, "groups": 2, "correction": 0.1, "downlink-bits": 0.25}
    )
    assert codec_of({**config, "codec-settings": ""}) == codec_of(config)
    output = {"output-codec": "dropout-only", "output-codec-settings": "reduction=4"}
    assert output_codec_of({**config, **output}).config()["reduction"] == 4.0


def test_a_run_is_the_same_however_its_codecs_settings_are_given(
    tmp_path: Path,
) -> None:
    cut = {"uplink_bits": 2.0, "downlink_bits": 2.0}
    by_keys = run(tmp_path / "keys", num_rounds=1, reduction=4, **cut)
    in_a_string = run(
        tmp_path / "string", num_rounds=1, codec_settings="reduction=4", **cut
    )
    assert by_keys["codec"] == in_a_string["codec"]
    assert by_keys["payload_digest"] == in_a_string["payload_digest"]


@pytest.mark.parametrize("prefix", ["", "output-"])
@pytest.mark.parametrize(
    ("codec", "key"), [("fedlite", "correction"), ("rand-top-s", "alpha")]
)
def test_a_key_of_0_is_a_setting_where_the_codec_takes_it(
    prefix: str, codec: str, key: str
) -> None:
    make = output_codec_of if prefix else codec_of
    config = {"strategy": "split-learning", f"{prefix}codec": codec}
    assert make(config).config()[key] != 0
    assert make({**config, prefix + key: 0.0}).config()[key] == 0


@pytest.mark.parametrize("codec", codec_names())
def test_a_key_of_0_is_not_set_where_the_codec_refuses_it_or_chooses(
    codec: str,
) -> None:
    config: dict[str, Scalar] = {"strategy": "split-learning", "codec": codec}
    listed = ["uplink-bits", "downlink-bits", "evaluation-bits", "quality"]
    listed += ["channel-dim", "reduction", "groups"]
    assert codec_of({**config, **dict.fromkeys(listed, 0)}) == codec_of(config)


@pytest.mark.parametrize("prefix", ["", "output-"])
@pytest.mark.parametrize("word", ["reduction", "uplink-bits", "uplink_bits"])
def test_the_string_wins_over_a_setting_s_own_key(prefix: str, word: str) -> None:
    make = output_codec_of if prefix else codec_of
    key = word.replace("_", "-")
    config = {
        "strategy": "split-learning",
        f"{prefix}codec": "dropout-only",
        f"{prefix}codec-settings": f"channel-dim=2 {word}=4",
        prefix + key: 2.0,
    }
    assert make(config).config()[key] == 4.0


@pytest.mark.parametrize("prefix", ["", "output-"])
def test_a_setting_that_is_wrong_is_named_by_its_key(prefix: str) -> None:
    make = output_codec_of if prefix else codec_of
    config = {
        "strategy": "split-learning",
        f"{prefix}codec": "dropout-only",
        f"{prefix}reduction": 4.0,
        f"{prefix}uplink-bits": -1.0,
    }
    with pytest.raises(ValueError, match=f"^{prefix}uplink-bits: uplink_bits must be"):
        make(config)


def test_a_codec_that_is_none_is_named_by_its_key() -> None:
    config = {"strategy": "split-learning", "codec": "gzip", "output-codec": "zip"}
    with pytest.raises(ValueError, match=r"^codec: unknown codec 'gzip'; known are"):
        codec_of(config)
    with pytest.raises(ValueError, match=r"^output-codec: unknown codec 'zip'; known"):
        output_codec_of(config)


def test_a_setting_that_the_string_gives_twice_is_an_error() -> None:
    config = {"codec-settings": "reduction=2 reduction=4"}
    with pytest.raises(ValueError, match="stands twice"):
        codec_of(config)
