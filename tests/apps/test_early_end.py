"""Runs of a `SplitServerApp` that end early, and the folders of their results."""

import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
from flwr.app import Context
from torch import nn

from flwr_splitfc.apps.results_folder import results_folder
from flwr_splitfc.callbacks import BestModel
from flwr_splitfc.run import held_folder
from flwr_splitfc.run.results import results_text
from flwr_splitfc.strategy.checkpoint import CheckpointError
from tests.apps.server_runs import accuracy, joined, run
from tests.halves import same


def written(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("strategy", ["split-learning", "splitfed-v1", "fedavg"])
def test_a_target_ends_the_run_and_the_last_row_is_kept(
    strategy: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "flwr")
    results = run(
        tmp_path,
        strategy=strategy,
        num_rounds=200,
        learning_rate=1e-2,
        target_accuracy=0.5,
        keep_best=True,
    )
    rounds = results["rounds"]
    # at most 2 rounds over ten seeds and two thread counts
    assert len(rounds) < 200
    assert [row["accuracy"] >= 0.5 for row in rounds] == [False] * (len(rounds) - 1) + [
        True
    ]
    assert results["stopped"].startswith(f"the accuracy of round {len(rounds)} is ")
    assert results["best"] == {"round": len(rounds), "accuracy": rounds[-1]["accuracy"]}
    assert (
        f"Stops after round {len(rounds)} of 200: {results['stopped']}"
        in caplog.messages
    )
    table = caplog.messages[-2]
    assert f"\n{len(rounds):>7} " in table
    if strategy != "fedavg":
        assert same(joined(tmp_path), joined(tmp_path / "best"))


def test_a_best_model_that_could_not_be_written_is_said_to_be_missing(
    tmp_path: Path,
) -> None:
    (tmp_path / "best").write_text("no folder")
    results = run(tmp_path, num_rounds=1, keep_best=True)
    (row,) = results["rounds"]
    assert results["best"] == {"round": 1, "accuracy": row["accuracy"], "kept": False}


@pytest.mark.parametrize("strategy", ["split-learning", "fedavg"])
@pytest.mark.parametrize(
    ("folder", "other"), [("", "the last model"), ("best", "the model of another")]
)
def test_the_best_model_s_folder_is_no_other_model_s(
    strategy: str, folder: str, other: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=f"of a BestModel is .* goes {other}"):
        run(
            tmp_path,
            strategy=strategy,
            keep_best=True,
            callbacks=lambda context: [BestModel(tmp_path / folder)],
        )


def test_patience_ends_the_run_by_a_metric_of_ones_own(tmp_path: Path) -> None:
    found = iter([9.0, 3.0, 1.0, 2.0, 1.5, 1.0, 0.5])

    def evaluate(model: nn.Module, context: Context) -> dict[str, float]:
        return {"rmse": next(found)}

    results = run(
        tmp_path,
        num_rounds=6,
        evaluate=evaluate,
        stop_patience=2,
        best_metric="lowest rmse",
        keep_best=True,
    )
    # the first was found before the first round
    assert [row["evaluation"]["rmse"] for row in results["rounds"]] == [
        3.0,
        1.0,
        2.0,
        1.5,
    ]
    assert results["best"] == {"round": 2, "rmse": 1.0}


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C interrupts, also in a shell's background job, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("strategy", ["split-learning", "fedavg"])
def test_ctrl_c_leaves_the_rounds_the_model_and_a_checkpoint_to_go_on_from(
    strategy: str, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "strategy": strategy,
        "num_rounds": 6,
        "checkpoint_dir": str(tmp_path / "checkpoint"),
    }
    evaluated = []

    def interrupted(model: nn.Module, context: Context) -> dict[str, float]:
        evaluated.append(model)
        if len(evaluated) == 5:
            signal.raise_signal(signal.SIGINT)
        return accuracy(model, context)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", evaluate=interrupted, **settings)
    before = written(tmp_path / "run")
    assert (len(before["rounds"]), before["unfinished"]) == (3, True)
    if strategy == "fedavg":
        return  # it keeps no model and no checkpoint
    assert all(tensor.isfinite().all() for tensor in joined(tmp_path / "run").values())
    after = run(tmp_path / "run", **settings)
    assert after["rounds"][:3] == before["rounds"]
    assert (len(after["rounds"]), "unfinished" in after) == (6, False)
    whole = run(tmp_path / "whole", strategy=strategy, num_rounds=6)
    assert after["payload_digest"] == whole["payload_digest"]
    assert same(joined(tmp_path / "run"), joined(tmp_path / "whole"))


@pytest.mark.parametrize("strategy", ["split-learning", "fedavg"])
def test_an_error_of_evaluation_leaves_the_rounds_the_reason_and_the_model(
    strategy: str, tmp_path: Path
) -> None:
    checkpoint = str(tmp_path / "checkpoint")
    settings: dict[str, Any] = {"strategy": strategy, "checkpoint_dir": checkpoint}
    evaluated = []

    def broken(model: nn.Module, context: Context) -> dict[str, float]:
        evaluated.append(model)
        if len(evaluated) == 4:  # the first is before the first round
            raise ZeroDivisionError("no test set")
        return accuracy(model, context)

    with pytest.raises(ZeroDivisionError, match="no test set"):
        run(tmp_path / "run", evaluate=broken, num_rounds=4, **settings)
    before = written(tmp_path / "run")
    assert [row["round"] for row in before["rounds"]] == [1, 2]
    assert before["failed"] == "ZeroDivisionError: no test set"
    assert all(tensor.isfinite().all() for tensor in joined(tmp_path / "run").values())
    if strategy == "fedavg":
        return  # it keeps no checkpoint
    after = run(tmp_path / "run", num_rounds=4, **settings)
    assert after["rounds"][:2] == before["rounds"]
    assert (len(after["rounds"]), "failed" in after) == (4, False)


@pytest.mark.parametrize("strategy", ["split-learning", "fedavg"])
@pytest.mark.parametrize("fails", [False, True])
def test_a_disk_that_is_full_at_the_end_hides_neither_the_table_nor_the_error(
    fails: bool, strategy: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "flwr")
    evaluated = []

    def full(model: nn.Module, context: Context) -> dict[str, float]:
        evaluated.append(model)
        if len(evaluated) == 3:
            # what a file is written to before it takes its place
            (tmp_path / ".results.json.new").mkdir(exist_ok=True)
            if fails:
                raise ZeroDivisionError("no test set")
        return {"accuracy": 0.5}

    error = ZeroDivisionError if fails else OSError
    with pytest.raises(error):
        run(tmp_path, strategy=strategy, num_rounds=2, evaluate=full)
    assert f"{tmp_path / 'results.json'} could not be written" in caplog.messages[-1]
    assert fails or "\n      2 " in caplog.messages[-2]


def test_a_checkpoint_that_is_refused_leaves_the_results_of_before(
    tmp_path: Path,
) -> None:
    settings: dict[str, Any] = {
        "strategy": "split-learning",
        "checkpoint_dir": str(tmp_path / "checkpoint"),
    }
    evaluated = []

    def broken(model: nn.Module, context: Context) -> dict[str, float]:
        evaluated.append(model)
        if len(evaluated) == 3:
            raise ZeroDivisionError("no test set")
        return accuracy(model, context)

    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "run", evaluate=broken, **settings)
    before = written(tmp_path / "run")
    (tmp_path / "checkpoint" / "checkpoint.bin").write_bytes(b"nothing")
    with pytest.raises(CheckpointError):
        run(tmp_path / "run", **settings)
    assert written(tmp_path / "run") == before


def test_a_checkpoint_that_a_strategy_does_not_keep_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = tmp_path / "checkpoint"

    def told(strategy: str, **options: Any) -> int:
        caplog.clear()
        run(tmp_path / strategy, strategy=strategy, num_rounds=2, **options)
        return caplog.text.count("checkpoint-dir is not used")

    assert told("fedavg", checkpoint_dir=str(checkpoint)) == 1
    assert not checkpoint.exists()
    assert told("fedprox") == 0
    assert told("split-learning", checkpoint_dir=str(checkpoint)) == 0


def test_a_run_that_is_under_way_has_its_rounds_in_the_file(tmp_path: Path) -> None:
    seen = []

    def evaluate(model: nn.Module, context: Context) -> dict[str, float]:
        if (tmp_path / "results.json").exists():
            seen.append(written(tmp_path))
        return {"accuracy": 0.5}

    run(tmp_path, num_rounds=3, evaluate=evaluate)
    assert seen[0]["unfinished"] is True
    assert [row["round"] for row in seen[0]["rounds"]] == [1]
    assert "unfinished" not in written(tmp_path)


def test_a_run_leaves_the_results_of_others_alone(tmp_path: Path) -> None:
    options: dict[str, Any] = {"strategy": "split-learning", "num_rounds": 1}
    run(tmp_path / "results", **options)
    first = (tmp_path / "results" / "results.json").read_bytes()
    model = joined(tmp_path / "results")
    run(tmp_path / "results", **options, seed=1)
    assert (tmp_path / "results" / "results.json").read_bytes() == first
    assert same(joined(tmp_path / "results"), model)
    second = written(tmp_path / "results-2")
    assert (second["seed"], len(second["rounds"])) == (1, 1)
    assert not same(joined(tmp_path / "results-2"), model)


def test_results_and_checkpoint_may_be_in_one_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options: dict[str, Any] = {
        "strategy": "split-learning",
        "num_rounds": 1,
        "checkpoint_dir": str(folder),
    }
    run(folder, **options)
    assert {"results.json", "checkpoint.bin"} <= {
        path.name for path in folder.iterdir()
    }


CONFIG = {"seed": 0}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("", "results-2"),
        ("[]", "results-2"),
        ("[" * 200_000, "results-2"),
        ('{"run_config": null, "failed": ""}', "results-2"),
        ('{"run_config": {"seed": 0}}', "results-2"),
        ('{"run_config": {"seed": 0}, "unfinished": true}', "results"),
        ('{"run_config": {"seed": 0}, "failed": "no devices"}', "results"),
        ('{"run_config": {"seed": 1}, "unfinished": true}', "results-2"),
    ],
)
def test_a_folder_is_taken_unless_the_same_run_went_on_there(
    text: str, name: str, tmp_path: Path
) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "results.json").write_text(text)
    with results_folder(tmp_path / "results", CONFIG) as folder:
        assert folder.name == name


def test_a_run_finds_its_folder_again_whatever_its_settings_are(tmp_path: Path) -> None:
    config: dict[str, Any] = {"split-turn-timeout-s": float("inf"), "own": float("nan")}
    text = results_text({"run_config": config, "unfinished": True})
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "results.json").write_text(text)
    with results_folder(tmp_path / "results", config) as folder:
        assert folder.name == "results"
    with results_folder(tmp_path / "results", {**config, "own": "nan"}) as folder:
        assert folder.name == "results-2"


def test_a_folder_in_the_place_of_results_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "results" / "results.json").mkdir(parents=True)
    with results_folder(tmp_path / "results", CONFIG) as folder:
        assert folder.name == "results-2"


@pytest.mark.parametrize("below", ["", "results"])
def test_results_that_have_no_folder_are_refused_by_their_key(
    below: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / below
    with pytest.raises(ValueError, match=f"^results-dir: {folder} is no folder to"):
        run(folder, strategy="split-learning")


def test_a_run_waits_for_one_that_was_stopped_and_takes_its_folder(
    tmp_path: Path,
) -> None:
    """The process of a stopped run ends some seconds after `flwr stop`."""
    with ExitStack() as stopped:
        stopped.enter_context(results_folder(tmp_path / "results", CONFIG))
        Timer(0.3, stopped.close).start()
        with results_folder(tmp_path / "results", CONFIG) as folder:
            assert folder.name == "results"


def hold(folder: Path, names: Any) -> None:
    held_folder.PATIENCE_S = 0.0
    with results_folder(folder, CONFIG) as own:
        names.put(own.name)
        names.put("")
        names.join()


def test_runs_at_the_same_time_have_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "flwr")
    monkeypatch.setattr(held_folder, "PATIENCE_S", 0.0)
    with results_folder(tmp_path / "results", CONFIG):
        process = get_context("spawn")
        names = process.JoinableQueue()
        other = process.Process(target=hold, args=(tmp_path / "results", names))
        other.start()
        assert names.get() == "results-2"
        names.task_done()
        with results_folder(tmp_path / "results", CONFIG) as third:
            assert third.name == "results-3"
        why = f"not {tmp_path / 'results'}: another run is at work in it"
        assert f"Results go into {third}, {why}" in caplog.text
        names.get()
        names.task_done()
        other.join()
