"""The keys of a run-config: every one is in `SplitServerApp`'s table."""

import json
import re
from dataclasses import fields
from typing import Any

import pytest

from flwr_splitfc import SplitServerApp
from flwr_splitfc.apps.run_settings import RunSettings
from flwr_splitfc.settings import read_settings


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


def test_the_largest_values_are_understood() -> None:
    largest = {"num-rounds": 2**31 - 1, "seed": 2**63 - 1}
    assert read_settings(RunSettings, largest).seed == 2**63 - 1


def test_every_key_in_the_apps_table_is_understood() -> None:
    known = {field.name.replace("_", "-") for field in fields(RunSettings)}
    codecs = {"codec", "codec-settings", "output-codec", "output-codec-settings"}
    assert documented_defaults().keys() == known | codecs
