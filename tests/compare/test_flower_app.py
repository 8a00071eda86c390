"""Settings of a Flower app, in layers."""

from pathlib import Path

import pytest

from flwr_splitfc import EndpointConfig
from flwr_splitfc.apps.run_codecs import codec_of
from flwr_splitfc.compare.flower_app import FlowerApp, Layer, parse_setting


def app_in(folder: Path, config: str, extra: str = "") -> FlowerApp:
    (folder / "pyproject.toml").write_text(
        "[tool.flwr.app.components]\nserverapp = 'a:s'\nclientapp = 'a:c'\n"
        f"[tool.flwr.app.config]\nresults-dir = 'results'\n{config}\n{extra}"
    )
    return FlowerApp.load(folder)


def test_later_layers_win(tmp_path: Path) -> None:
    app = app_in(tmp_path, "a = 1\nb = 1\nc = 1\nd = 1")
    merged = app.run_config(
        [
            Layer("base", {"b": 2, "c": 2, "d": 2}),
            Layer("file", {"c": 3, "d": 3}),
            Layer("--set", {"d": 4}),
        ]
    )
    assert {key: merged[key] for key in "abcd"} == {"a": 1, "b": 2, "c": 3, "d": 4}


def test_all_unknown_keys_are_named_with_their_files(tmp_path: Path) -> None:
    app = app_in(tmp_path, "seed = 0")
    message = (
        r"the app in .* has no setting for\n"
        r"  mine\.toml: 'bits', 'sede'\n"
        r"  --set: 'rounds'\n"
        r"it has results-dir, seed"
    )
    layers = [
        Layer("mine.toml", {"sede": 1, "seed": 2, "bits": 3}),
        Layer("--set", {"rounds": 4}),
    ]
    with pytest.raises(ValueError, match=message):
        app.run_config(layers)


def test_a_split_server_app_has_the_keys_that_it_understands(tmp_path: Path) -> None:
    (tmp_path / "whole_apps.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "from flwr_splitfc import SplitServerApp\n"
        "half = lambda: nn.Linear(2, 2)\n"
        "s = SplitServerApp(half, half, nn.MSELoss(), torch.optim.Adam)\n"
    )
    (tmp_path / "pyproject.toml").write_text(
        "[tool.flwr.app.components]\nserverapp = 'whole_apps:s'\nclientapp = 'a:c'\n"
        "[tool.flwr.app.config]\nwidth = 8\n"
    )
    app = FlowerApp.load(tmp_path)
    settings = {"codec": "top-s", "alpha": 0.2, "learning-rate": 1, "width": 9}
    merged = app.run_config([Layer("file", settings)])
    assert settings.items() <= merged.items()
    assert merged["results-dir"] == "results"
    assert merged["num-devices"] == 2
    assert "steps-per-turn" not in merged, "the app's own default holds"
    with pytest.raises(ValueError, match="file: 'num-round'"):
        app.run_config([Layer("file", {"num-round": 3})])
    settings = {
        "evaluation": "codec",
        "evaluation-bits": 0.3,
        "channel-dim": 2,
        "output-uplink-bits": 1.0,
        "output-reduction": 4,
        "split-max-sessions": 8,
        "split-idle-timeout-s": 60,
        "split-tls": "off",
    }
    merged = app.run_config([Layer("--set", settings)])
    assert settings.items() <= merged.items()
    codec = {"strategy": "split-learning", "codec": "dropout-only"}
    assert codec_of({**merged, **codec}).config()["channel-dim"] == 2
    assert EndpointConfig.from_run_config(merged).limits.max_sessions == 8


def test_values_take_the_type_of_the_default(tmp_path: Path) -> None:
    app = app_in(tmp_path, "bits = 0.2\nreduction = 8\nname = 'x'\nflag = true")
    file = Layer("file", {"bits": 1, "reduction": 2.5, "name": 12})
    merged = app.run_config([file])
    assert [merged[key] for key in ("bits", "reduction", "name")] == [1.0, 2.5, "12"]
    assert isinstance(merged["bits"], float)
    for key, value in (("bits", "much"), ("flag", 1), ("reduction", True)):
        with pytest.raises(ValueError, match=f"file: {key} is .*, wanted"):
            app.run_config([Layer("file", {key: value})])


def test_nested_tables_are_dotted_keys(tmp_path: Path) -> None:
    app = app_in(tmp_path, "", "[tool.flwr.app.config.model]\nwidth = 8\n")
    file = tmp_path / "run.toml"
    file.write_text("[model]\nwidth = 16\n")
    assert app.run_config([Layer.from_file(file)])["model.width"] == 16


@pytest.mark.parametrize(
    ("text", "value"),
    [("k=1", 1), ("k=1e-3", 1e-3), ("k = true", True), ("k=a b", "a b"), ("k=", "")],
)
def test_settings_of_a_command_line(text: str, value: object) -> None:
    assert parse_setting(text) == {"k": value}


def test_what_is_no_setting_or_no_app_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="key=value"):
        parse_setting("seed")
    with pytest.raises(ValueError, match=r"is no app: no pyproject\.toml in "):
        FlowerApp.load(tmp_path / "nope")
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    with pytest.raises(ValueError, match="describes no Flower app"):
        FlowerApp.load(tmp_path)
    (tmp_path / "pyproject.toml").write_text(
        "[tool.flwr.app.components]\nserverapp = 'a:s'\nclientapp = 'a:c'\n"
        "[tool.flwr.app.config]\nseed = 0\n"
    )
    with pytest.raises(ValueError, match="no results-dir"):
        FlowerApp.load(tmp_path)


@pytest.mark.parametrize(
    "text", [f"a = {'[' * 100_000}", f"a = {'9' * 5000}"], ids=["deep", "long"]
)
def test_a_file_that_nobody_can_read_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"mine\.toml cannot be read as TOML"):
        Layer.from_file(path)


def test_the_fingerprint_is_of_the_python_files(tmp_path: Path) -> None:
    app = app_in(tmp_path, "")
    before = app.fingerprint()
    (tmp_path / "notes.md").write_text("nothing")
    assert app.fingerprint() == before
    (tmp_path / "task.py").write_text("x = 1\n")
    assert app.fingerprint() != before
