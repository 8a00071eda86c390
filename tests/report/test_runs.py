"""Which runs a comparison has, and what they leave on disk."""

import json
from pathlib import Path

import pytest

from flwr_splitfc.codec import BudgetError, cut_codec
from flwr_splitfc.report.app import FlowerApp, SettingsError
from flwr_splitfc.report.runs import Outcome, Run, RunFolder, expand, parse_budget

ROOT = Path(__file__).parents[2]
BUDGETS = [(0.1, 0.2), (0.2, 0.4)]


@pytest.fixture
def app() -> FlowerApp:
    return FlowerApp.load(ROOT / "examples" / "mnist")


def shelf(*names: str) -> list[Path]:
    return [ROOT / "strategies" / f"{name}.toml" for name in names]


def test_a_run_per_strategy_budget_and_seed_and_one_per_seed_without_a_budget(app: FlowerApp) -> None:
    runs = expand(app, shelf("splitfc", "split-learning", "fedavg"), seeds=[0, 1], budgets=BUDGETS)
    assert [(run.method, run.budget, run.seed) for run in runs] == [
        *[("splitfc", budget, seed) for budget in BUDGETS for seed in (0, 1)],
        *[(method, None, seed) for method in ("split-learning", "fedavg") for seed in (0, 1)],
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
        ({"strategy": "of-my-own", "codec": "of-my-own"}, True),
    ],
)
def test_methods_that_keep_to_a_budget(
    app: FlowerApp, tmp_path: Path, settings: dict[str, str], has_budget: bool
) -> None:
    file = tmp_path / "method.toml"
    file.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()))
    runs = expand(app, [file], budgets=BUDGETS)
    assert [run.budget for run in runs] == (BUDGETS if has_budget else [None])


def test_settings_in_order_of_precedence(app: FlowerApp, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("num-rounds = 3\nbatch-size = 3\nseed = 3\n")
    base = ("base.toml", {"num-rounds": 2, "batch-size": 2, "seed": 2, "num-devices": 2})
    (run,) = expand(app, [file], base=[base], seeds=[4], over={"batch-size": 5})
    assert [run.config[key] for key in ("num-devices", "num-rounds", "seed", "batch-size")] == [2, 3, 4, 5]


def test_two_files_of_one_name_are_refused(app: FlowerApp, tmp_path: Path) -> None:
    other = tmp_path / "splitfc.toml"
    other.write_text("reduction = 4\n")
    with pytest.raises(SettingsError, match="have one name"):
        expand(app, [*shelf("splitfc"), other])


def test_an_id_is_of_all_settings_and_of_the_app() -> None:
    run = Run("splitfc", {"seed": 1, "num-rounds": 2}, (0.1, 0.2), "app 1")
    assert run.id.startswith("splitfc-0.1-0.2-seed1-")
    assert run.id == Run("splitfc", {"num-rounds": 2, "seed": 1}, (0.1, 0.2), "app 1").id
    others = [
        Run("splitfc", {"seed": 1, "num-rounds": 3}, (0.1, 0.2), "app 1"),
        Run("splitfc", {"seed": 1, "num-rounds": 2}, (0.1, 0.2), "app 2"),
    ]
    assert len({run.id, *(other.id for other in others)}) == 3


def test_budgets_of_a_command_line() -> None:
    for text in ("", "a", "0.1/0.2/0.3", "0", "-1/2"):
        with pytest.raises(SettingsError, match="a budget is UP or UP/DOWN"):
            parse_budget(text)


def test_a_folder_tells_how_far_its_run_is(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    assert folder.outcome() == Outcome("to do")
    folder.start()
    folder.checkpoint.mkdir()
    assert folder.outcome() == Outcome("to do")
    folder.end(Outcome("failed", "no data"))
    assert folder.outcome() == Outcome("failed", "no data")
    assert not folder.outcome().settled
    assert folder.checkpoint.exists()
    folder.end(Outcome("failed", "CheckpointError: damaged"))
    assert not folder.checkpoint.exists()
    folder.start()
    assert folder.outcome() == Outcome("to do")
    folder.finish({"rounds": []})
    assert folder.outcome() == Outcome("finished", results={"rounds": []})
    assert folder.outcome().settled


def test_a_run_has_folders_of_its_own(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    run = Run("m", {"results-dir": "results", "checkpoint-dir": "", "seed": 1}, None, "")
    config = folder.complete_config(run, checkpoints=True)
    assert config == {"results-dir": str(folder.output), "checkpoint-dir": str(folder.checkpoint), "seed": 1}
    assert folder.complete_config(run, checkpoints=False)["checkpoint-dir"] == ""
    assert "checkpoint-dir" not in folder.complete_config(Run("m", {}, None, ""), checkpoints=True)


def test_the_smallest_budget_is_read_from_the_codecs_own_message() -> None:
    cut = cut_codec("splitfc", uplink_bits=0.001, downlink_bits=0.0001)
    with pytest.raises(BudgetError) as raised:
        cut.check_budget(256, 1152)
    up, down = cut.smallest_bits(256, 1152)
    assert Outcome("impossible", f"{raised.value}\n{raised.value}").needs == f"needs at least {up} up, {down} down"
    assert Outcome("failed", "out of\nmemory").summary == "out of memory"
    assert len(Outcome("failed", 1000 * "x").summary) < 250
