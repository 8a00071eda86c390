"""Every run-config on the shelf fits every example."""

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RUN_CONFIGS = sorted([*ROOT.glob("strategies/*.toml"), *ROOT.glob("examples/*/configs/*.toml")])


@pytest.mark.parametrize("app", sorted(ROOT.glob("examples/*/pyproject.toml")), ids=lambda path: path.parent.name)
@pytest.mark.parametrize("run_config", RUN_CONFIGS, ids=lambda path: path.stem)
def test_every_key_is_one_of_the_apps(app: Path, run_config: Path) -> None:
    if run_config.parent.name == "configs" and run_config.parents[1] != app.parent:
        pytest.skip("made for another example")
    known = tomllib.loads(app.read_text())["tool"]["flwr"]["app"]["config"]
    given = tomllib.loads(run_config.read_text())
    assert given.keys() <= known.keys()
    wrong = {key: value for key, value in given.items() if type(value) is not type(known[key])}
    assert not wrong


def test_every_file_is_in_the_table() -> None:
    table = (ROOT / "strategies" / "README.md").read_text()
    assert all(f"`{path.name}`" in table for path in ROOT.glob("strategies/*.toml"))
