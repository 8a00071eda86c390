"""The keys of a run-config: every one is in `SplitServerApp`'s table."""

import json
import re
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from flwr_splitfc import SplitServerApp
from flwr_splitfc.apps.run_codecs import codec_of, output_codec_of
from flwr_splitfc.apps.run_settings import RunSettings
from flwr_splitfc.exchange import EndpointConfig
from flwr_splitfc.settings import read_settings
from tests.apps.server_runs import run


def documented_defaults() -> dict[str, str]:
    """The table of keys in the docstring: by key, its default as it is written there."""
    assert SplitServerApp.__doc__ is not None
    _, _, table = SplitServerApp.__doc__.partition("key  ")
    return dict(re.findall(r"^ *``([a-z-]+)``  *(\S+)", table, re.M))


@pytest.mark.parametrize("field", fields(RunSettings), ids=lambda field: field.name)
def test_every_key_is_in_the_apps_table_with_its_default(field: Any) -> None:
    written = documented_defaults()[field.name.replace("_", "-")]
    if field.default is None:
        assert written == "`optimizer`'s"
    else:
        assert json.loads(written) == field.default


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("num-rounds", 10**18, "is 1000000000000000000, wanted less than 2147483648"),
        ("torch-threads", 2**31, "is 2147483648, wanted less than 2147483648"),
        ("torch-threads", 1025, "is 1025, wanted 1024 or less"),
        ("pipeline-depth", 10**30, ".* is no integer of 64 bits"),
        ("steps-per-turn", 10**30, ".* is no integer of 64 bits"),
        ("seed", 2**63, ": 9223372036854775808 is no integer of 64 bits"),
        ("learning-rate", 10**400, ".* is no integer of 64 bits"),
        ("results-dir", "a\0b", ": .*embedded null "),
        ("results-dir", "/", "is '/', wanted a folder below"),
        ("checkpoint-dir", "\ud800", ": .* surrogates not allowed"),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_key(
    key: str, value: Any, why: str
) -> None:
    with pytest.raises(ValueError, match=f"^{key}:? ?{why}"):
        read_settings(RunSettings, {key: value})


@pytest.mark.parametrize(
    ("read", "key"),
    [
        (partial(read_settings, RunSettings), "num_rounds"),
        (EndpointConfig.from_run_config, "split_port"),
        (codec_of, "uplink_bits"),
        (codec_of, "codec_settings"),
        (output_codec_of, "output_uplink_bits"),
        (output_codec_of, "output_codec"),
    ],
)
def test_a_key_with_underscores_is_refused(read: Any, key: str) -> None:
    """It would change nothing."""
    dashed = key.replace("_", "-")
    with pytest.raises(ValueError, match=f"^the config has '{key}': write {dashed},"):
        read({key: 1, "output-codec": "top-s", "my_own": 2})


@pytest.mark.parametrize(("keys", "warnings"), [({}, 1), ({"num_rounds": 2}, 0)])
def test_flowers_own_key_for_rounds_is_warned_of(
    keys: dict[str, int], warnings: int, tmp_path: Path, caplog: Any
) -> None:
    run(tmp_path, num_server_rounds=2, steps_per_turn=1, **keys)
    told = [line for line in caplog.messages if "num-server-rounds instead" in line]
    assert len(told) == warnings


def test_the_largest_values_are_understood() -> None:
    largest = {"num-rounds": 2**31 - 1, "seed": 2**63 - 1}
    assert read_settings(RunSettings, largest).seed == 2**63 - 1


def test_every_key_in_the_apps_table_is_understood() -> None:
    known = {field.name.replace("_", "-") for field in fields(RunSettings)}
    codecs = {"codec", "codec-settings", "output-codec", "output-codec-settings"}
    assert documented_defaults().keys() == known | codecs
