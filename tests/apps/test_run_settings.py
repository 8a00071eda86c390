"""The keys of a run-config: every one is in `SplitServerApp`'s table."""

import json
import re
from dataclasses import fields
from typing import Any

import pytest

from flwr_splitfc import SplitServerApp
from flwr_splitfc.apps.run_settings import RunSettings


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


def test_every_key_in_the_apps_table_is_understood() -> None:
    known = {field.name.replace("_", "-") for field in fields(RunSettings)}
    codecs = {"codec", "codec-settings", "output-codec", "output-codec-settings"}
    assert documented_defaults().keys() == known | codecs
