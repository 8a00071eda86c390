"""Every run-config on the shelf fits every example with a `SplitServerApp`, and so do the examples' own."""

import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from flwr_splitfc import EndpointConfig
from flwr_splitfc.apps.run_codecs import codec_of, output_codec_of
from flwr_splitfc.apps.run_settings import RunSettings
from flwr_splitfc.apps.strategies import UNSPLIT
from flwr_splitfc.codec import CodecEntry, codec_names, codec_table, cut_codec
from flwr_splitfc.settings import read_settings

ROOT = Path(__file__).parents[1]
APPS = [
    app
    for app in sorted(ROOT.glob("examples/*/pyproject.toml"))
    if app.parent.name != "quickstart"  # it has a ServerApp of its own
]
TIMEOUTS = ("open", "turn", "idle", "reconnect", "reply")
SHELF = sorted(ROOT.glob("strategies/*.toml"))
OWN = [
    (app, config)
    for app in APPS
    for config in sorted(app.parent.glob("configs/*.toml"))
]


def keys_of(app: Path) -> dict[str, Any]:
    config: dict[str, Any] = tomllib.loads(app.read_text())["tool"]["flwr"]["app"][
        "config"
    ]
    return config


@pytest.mark.parametrize(
    ("app", "run_config"),
    [*((app, path) for app in APPS for path in SHELF), *OWN],
    ids=lambda path: path.parent.name if path.name == "pyproject.toml" else path.stem,
)
def test_every_key_is_one_of_the_apps(app: Path, run_config: Path) -> None:
    known, given = keys_of(app), tomllib.loads(run_config.read_text())
    for key, value in given.items():
        assert key in known, f"{run_config.name}: {app.parent.name} has no key {key!r}"
        assert type(value) is type(known[key]), (
            f"{run_config.name}: {key} is {value!r}, not like {known[key]!r}"
        )
    merged = {**known, **given}
    assert read_settings(RunSettings, merged).strategy == merged["strategy"]
    assert merged["strategy"] in UNSPLIT or codec_of(merged)


@pytest.mark.parametrize("app", APPS, ids=lambda path: path.parent.name)
def test_every_key_of_a_split_server_app_is_one_of_the_apps(app: Path) -> None:
    wanted = {field.name.replace("_", "-") for field in fields(RunSettings)}
    wanted |= {"codec", "codec-settings", "output-codec", "output-codec-settings"}
    wanted |= {f"split-{what}-timeout-s" for what in TIMEOUTS}
    assert not wanted - keys_of(app).keys()


@pytest.mark.parametrize("app", APPS, ids=lambda path: path.parent.name)
def test_the_apps_keys_are_what_no_key_is(app: Path) -> None:
    config = {**keys_of(app), "split-address": ""}
    assert EndpointConfig.from_run_config(config) == EndpointConfig()


@pytest.mark.parametrize("app", APPS, ids=lambda path: path.parent.name)
def test_the_apps_leave_the_outputs_precision_to_its_codec(app: Path) -> None:
    for name in codec_names():
        made = output_codec_of({**keys_of(app), "output-codec": name})
        own = cut_codec(name)
        budgets = (made.uplink_bits, made.downlink_bits)
        assert budgets == (own.uplink_bits, own.downlink_bits)
        assert made.quality == own.quality


@pytest.mark.parametrize("entry", codec_table(), ids=lambda entry: entry.name)
def test_every_setting_of_every_codec_can_be_given(entry: CodecEntry) -> None:
    # the budget decides those that have no default
    settings = [
        f"{key}={value}"
        for key, value in entry.own_settings.items()
        if value is not None
    ]
    config = {"strategy": "splitfed-v2", "codec": entry.name}
    cut = codec_of({**config, "codec-settings": " ".join(settings)})
    assert cut == cut_codec(entry.name)


def test_every_file_is_in_the_table() -> None:
    table = (ROOT / "strategies" / "README.md").read_text()
    assert all(f"`{path.name}`" in table for path in SHELF)
