"""Which runs a comparison has."""

import json
from pathlib import Path

import pytest

from flwr_splitfc.codec import AllColumns, Uniform, catalogue, register_codec
from flwr_splitfc.compare.flower_app import FlowerApp, Layer
from flwr_splitfc.compare.methods import Method
from flwr_splitfc.compare.run_plan import expand, parse_budget

ROOT = Path(__file__).parents[2]
BUDGETS = [(0.1, 0.2), (0.2, 0.4)]


@pytest.fixture
def app() -> FlowerApp:
    return FlowerApp.load(ROOT / "examples" / "mnist")


def shelf(*names: str) -> list[Method]:
    return [Method.from_file(ROOT / "strategies" / f"{name}.toml") for name in names]


def test_a_run_per_strategy_budget_and_seed_and_one_per_seed_without_a_budget(
    app: FlowerApp,
) -> None:
    runs = expand(
        app, shelf("splitfc", "split-learning", "fedavg"), seeds=[0, 1], budgets=BUDGETS
    )
    assert [(run.method, run.budget, run.seed) for run in runs] == [
        *[("splitfc", budget, seed) for budget in BUDGETS for seed in (0, 1)],
        *[
            (method, None, seed)
            for method in ("split-learning", "fedavg")
            for seed in (0, 1)
        ],
    ]
    assert runs[2].config["uplink-bits"] == 0.2
    assert runs[2].config["downlink-bits"] == 0.4


def test_without_budgets_and_seeds_the_strategys_own_hold(app: FlowerApp) -> None:
    (run,) = expand(app, shelf("splitfc"), over={"uplink-bits": 0.3})
    assert run.budget == (0.3, 0.4)
    assert run.seed == app.defaults["seed"]


@pytest.mark.parametrize(
    ("settings", "has_budget"),
    [
        ({"strategy": "splitfed-v1", "codec": "quant-only"}, True),
        ({"strategy": "split-learning", "codec": "dropout-only"}, False),
        ({"strategy": "split-learning", "codec": "float16"}, False),
        ({"strategy": "fedadam", "codec": "quant-only"}, False),
    ],
)
def test_methods_that_keep_to_a_budget(
    app: FlowerApp, tmp_path: Path, settings: dict[str, str], has_budget: bool
) -> None:
    file = tmp_path / "method.toml"
    file.write_text(
        "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
    )
    runs = expand(app, [Method.from_file(file)], budgets=BUDGETS)
    assert [run.budget for run in runs] == (BUDGETS if has_budget else [None])


UNKNOWN = [
    ("split-learning", "mine", "codec: unknown codec 'mine'; known are dropout-only"),
    ("of-my-own", "top-s", "strategy is 'of-my-own', wanted one of splitfc"),
]


@pytest.mark.parametrize(("strategy", "codec", "message"), UNKNOWN)
def test_what_a_split_server_app_does_not_know_is_refused_before_any_run(
    app: FlowerApp, strategy: str, codec: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        expand(app, shelf("splitfc"), over={"strategy": strategy, "codec": codec})


@pytest.mark.parametrize(("strategy", "codec", "message"), UNKNOWN)
def test_other_server_apps_may_have_strategies_and_codecs_of_their_own(
    toy: FlowerApp, strategy: str, codec: str, message: str
) -> None:
    method = Method("mine", Layer("file", {"strategy": strategy, "codec": codec}))
    runs = expand(toy, [method], budgets=BUDGETS)
    assert [run.budget for run in runs] == BUDGETS


def test_a_codec_that_the_app_registers_is_known(
    app: FlowerApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "CATALOGUE", dict(catalogue.CATALOGUE))
    register_codec("mine", AllColumns, Uniform)
    method = Method.from_codec("mine")
    assert [run.config["codec"] for run in expand(app, [method])] == ["mine"]


def test_a_codec_is_nothing_to_a_strategy_without_a_cut(app: FlowerApp) -> None:
    (run,) = expand(app, shelf("fedavg"), over={"codec": "mine"})
    assert run.budget is None


def test_the_budget_of_a_run_may_stand_in_codec_settings(app: FlowerApp) -> None:
    bits = "uplink-bits=0.3 downlink-bits=0.5"
    (run,) = expand(app, shelf("splitfc"), over={"codec-settings": bits})
    assert run.budget == (0.3, 0.5)


def test_settings_in_order_of_precedence(app: FlowerApp, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("num-rounds = 3\nbatch-size = 3\nseed = 3\n")
    base = Layer(
        "base.toml", {"num-rounds": 2, "batch-size": 2, "seed": 2, "num-devices": 2}
    )
    methods = [Method.from_file(file)]
    (run,) = expand(app, methods, base=[base], seeds=[4], over={"batch-size": 5})
    assert [
        run.config[key] for key in ("num-devices", "num-rounds", "seed", "batch-size")
    ] == [2, 3, 4, 5]


@pytest.mark.parametrize("seed", [float("inf"), 1e300, 2**63, 10**400])
def test_a_seed_of_more_than_64_bits_is_refused(app: FlowerApp, seed: float) -> None:
    with pytest.raises(ValueError, match="seed: "):
        expand(app, shelf("splitfc"), over={"seed": seed})


def test_two_files_of_one_name_are_refused(app: FlowerApp, tmp_path: Path) -> None:
    other = tmp_path / "splitfc.toml"
    other.write_text("reduction = 4\n")
    with pytest.raises(ValueError, match="have one name"):
        expand(app, [*shelf("splitfc"), Method.from_file(other)])


def test_budgets_of_a_command_line() -> None:
    for text in ("", "a", "0.1/0.2/0.3", "0", "-1/2"):
        with pytest.raises(ValueError, match="a budget is UP or UP/DOWN"):
            parse_budget(text)
