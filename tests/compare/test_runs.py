"""A run's name, and what it leaves on disk."""

import json
from pathlib import Path
from typing import Any

import pytest

from flwr_splitfc.codec import BudgetError, cut_codec
from flwr_splitfc.compare.runs import Outcome, Run, RunFolder, sources_digest
from tests.compare.conftest import traffic

RESULTS = {"rounds": [], "traffic": traffic()}


def counts(**changes: Any) -> str:
    """The text of results with other counts."""
    return json.dumps({**RESULTS, "traffic": traffic(**changes)})


def test_an_id_is_of_all_settings_and_of_the_app() -> None:
    run = Run("splitfc", {"seed": 1, "num-rounds": 2}, (0.1, 0.2), "app 1")
    assert run.id.startswith("splitfc-0.1-0.2-seed1-")
    assert (
        run.id == Run("splitfc", {"num-rounds": 2, "seed": 1}, (0.1, 0.2), "app 1").id
    )
    others = [
        Run("splitfc", {"seed": 1, "num-rounds": 3}, (0.1, 0.2), "app 1"),
        Run("splitfc", {"seed": 1, "num-rounds": 2}, (0.1, 0.2), "app 2"),
    ]
    assert len({run.id, *(other.id for other in others)}) == 3


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
    folder.finish(RESULTS)
    assert folder.outcome() == Outcome("finished", results=RESULTS)
    assert folder.outcome().settled


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("results.json", '{"rounds": [', "Expecting value"),
        ("results.json", "[" * 200_000, "maximum recursion depth"),
        ("results.json", "[1]", "it is list, wanted dict"),
        ("results.json", '{"rounds": []}', "it has no traffic"),
        ("results.json", '{"rounds": [{}], "traffic": {}}', "no times on a link"),
        ("results.json", '{"rounds": [], "traffic": {}}', "traffic in train is None"),
        ("results.json", counts(frogs=3), "unexpected keyword argument 'frogs'"),
        ("results.json", counts(uplink_bytes=3), "no attribute 'items'"),
        ("failed.json", "x", "Expecting value"),
        ("failed.json", "{}", "{}"),
        ("failed.json", '{"state": "failed", "reason": 5}', "'reason': 5"),
        ("failed.json", '{"state": "finished", "reason": ""}', "'finished'"),
    ],
)
def test_a_run_whose_files_are_damaged_is_to_do(
    name: str, text: str, why: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    outcome = RunFolder(tmp_path).outcome()
    assert outcome.state == "to do"
    assert outcome.reason.startswith(f"{tmp_path / name} is no ")
    assert why in outcome.reason
    assert (tmp_path / name).exists()


def test_damaged_results_do_not_hide_a_later_failure(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    (tmp_path / "results.json").write_text("[")
    folder.end(Outcome("failed", "no data"))
    assert folder.outcome() == Outcome("failed", "no data")


def test_damaged_scores_are_those_of_no_attack(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.finish(RESULTS)
    folder.leakage.write_text("[")
    assert folder.outcome() == Outcome("finished", results=RESULTS)


def test_a_run_has_folders_of_its_own(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    run = Run(
        "m", {"results-dir": "results", "checkpoint-dir": "", "seed": 1}, None, ""
    )
    config = folder.complete_config(run, checkpoints=True)
    assert config == {
        "results-dir": str(folder.output),
        "checkpoint-dir": str(folder.checkpoint),
        "seed": 1,
    }
    assert folder.complete_config(run, checkpoints=False)["checkpoint-dir"] == ""
    assert "checkpoint-dir" not in folder.complete_config(
        Run("m", {}, None, ""), checkpoints=True
    )


def test_the_smallest_budget_is_read_from_the_codecs_own_message() -> None:
    cut = cut_codec("splitfc", uplink_bits=0.001, downlink_bits=0.0001)
    with pytest.raises(BudgetError) as raised:
        cut.check_budget(256, 1152)
    up, down = cut.smallest_bits(256, 1152)
    assert (
        Outcome("impossible", f"{raised.value}\n{raised.value}").needs
        == f"needs at least {up} up, {down} down"
    )
    assert Outcome("failed", "out of\nmemory").summary == "out of memory"
    assert len(Outcome("failed", 1000 * "x").summary) < 250


def test_the_sources_are_all_that_can_change_a_run(tmp_path: Path) -> None:
    """What writes results.json is among them, also in a folder called as ours is."""
    for name in (
        "run/progress.py",
        "report/rows.py",
        "compare/run_plan.py",
        "command.py",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x = 1\n")
    before = sources_digest(tmp_path)
    for name in ("compare/run_plan.py", "command.py", "compare/workers/new.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x = 2\n")
        assert sources_digest(tmp_path) == before
    for name in ("run/progress.py", "report/rows.py", "run/columns.py"):
        (tmp_path / name).write_text("x = 2\n")
        after = sources_digest(tmp_path)
        assert after != before
        before = after
