"""The command: what it runs again and what it does not, with a pool that pretends."""

import errno
import fcntl
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import pytest

import flwr_splitfc
from flwr_splitfc import extras
from flwr_splitfc.codec import codec_names
from flwr_splitfc.command import main
from flwr_splitfc.compare import compare
from flwr_splitfc.compare.report import figures, output
from flwr_splitfc.compare.runs import Outcome, Run, RunFolder
from flwr_splitfc.compare.workers.messages import RoundReport
from flwr_splitfc.compare.workers.pool import Event, RoundFinished, RunEnded, RunStarted
from flwr_splitfc.run import Round, held_folder
from tests.compare.conftest import row, traffic
from tests.processes.comparison import MAIN

ROOT = Path(__file__).parents[2]
APP = ["--app", str(ROOT / "examples" / "mnist")]
SPLITFC, FEDAVG = (
    str(ROOT / "strategies" / f"{name}.toml") for name in ("splitfc", "fedavg")
)


class Pretender:
    """Stands in for `Pool`: every run is finished at once, or ends as is said."""

    made: list[str]
    ends: dict[str, Outcome]

    def __init__(self, app: object, federation: object, **options: Any) -> None:
        pass

    def make(
        self, runs: Sequence[Run], folder_of: Callable[[Run], RunFolder]
    ) -> Generator[Event, None, None]:
        for run in runs:
            self.made.append(f"{run.method} seed {run.seed}")
            folder = folder_of(run)
            folder.start()
            yield RunStarted(run)
            outcome = self.ends.get(run.method, Outcome("finished"))
            if outcome.state == "finished":
                links = {"links": {"train": {"0": [1000, 2000, 3]}, "evaluate": {}}}
                rounds = [row(1, None, 1.0) | links, row(2, 0.75, 1.0) | links]
                for line in rounds:
                    done = Round.from_json(line)
                    moved = done.round * done.moved_bytes
                    report = RoundReport(done, 2, moved, float(done.round))
                    yield RoundFinished(run, report)
                folder.finish(
                    {
                        "rounds": rounds,
                        "traffic": traffic(entries=8),
                        "payload_digest": "0",
                    }
                )
            folder.end(outcome)
            yield RunEnded(run, folder.outcome())


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> type[Pretender]:
    Pretender.made, Pretender.ends = [], {}
    monkeypatch.setattr(compare, "Pool", Pretender)
    monkeypatch.setattr(output, "pictures", lambda curves, target: {})
    return Pretender


def test_what_is_finished_is_not_run_again(
    pool: type[Pretender], tmp_path: Path
) -> None:
    command = ["compare", SPLITFC, *APP, "--out", str(tmp_path)]
    assert main(command) == 0
    assert pool.made == ["splitfc seed 0"]
    table = (tmp_path / "table.md").read_text()
    assert main(command) == 0
    assert pool.made == ["splitfc seed 0"]
    assert (tmp_path / "table.md").read_text() == table
    assert main(["compare", FEDAVG, *command[1:], "--seeds", "0,1"]) == 0
    assert pool.made[1:] == ["fedavg seed 0", "fedavg seed 1", "splitfc seed 1"]


def test_a_run_whose_results_are_damaged_is_made_anew(
    pool: type[Pretender], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["compare", SPLITFC, *APP, "--out", str(tmp_path), "--seeds", "0,1"]
    assert main(command) == 0
    damaged = sorted(tmp_path.glob("runs/*/results.json"))[1]
    damaged.write_text(damaged.read_text()[:-9])
    capsys.readouterr()
    assert main([*command, "--list"]) == 0
    finished, to_do = capsys.readouterr().out.splitlines()
    assert finished.startswith("finished ")
    assert to_do.startswith("to do ")
    assert f"({damaged} is no results.json" in to_do
    assert main(command) == 0
    assert pool.made[2:] == ["splitfc seed 1"]
    assert f"splitfc 0.2/0.4 seed 1 is made anew: {damaged}" in capsys.readouterr().err


def test_codecs_are_methods_by_their_names(
    pool: type[Pretender], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["compare", "splitfc-rd", SPLITFC, "float32", *APP]
    assert main([*command, "--out", str(tmp_path), "--budgets", "0.1,0.2"]) == 0
    assert pool.made == [
        *("splitfc-rd seed 0", "splitfc-rd seed 0"),
        *("splitfc seed 0", "splitfc seed 0"),
        "float32 seed 0",
    ]
    assert "| splitfc-rd | 0.2/0.4 | 75.0 | 1 |" in capsys.readouterr().out


def test_all_has_codecs_that_no_file_has(
    pool: type[Pretender], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = 'strategy = "split-learning"\ncodec = "top-s"\n'
    (tmp_path / "mine.toml").write_text(mine)
    command = ["compare", "--all", "--shelf", str(tmp_path), *APP, "--list"]
    assert main(command) == 0
    listed = [line.split()[2] for line in capsys.readouterr().out.splitlines()]
    others = [name for name in codec_names() if name != "top-s"]
    assert len(listed) == 1 + len(others)
    for name, run_id in zip(["mine", *others], listed, strict=True):
        assert run_id.startswith(f"{name}-")


def test_all_says_where_the_usual_shelf_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "--all", *APP, "--list"]) == 0
    told = capsys.readouterr()
    assert len(told.out.splitlines()) == len(codec_names())
    assert "no folder ./strategies: --all is the codecs alone" in told.err


def test_a_codec_that_the_strategy_would_not_use_is_refused(
    pool: type[Pretender], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.toml").write_text('strategy = "splitfc"\ncodec = "top-s"\n')
    assert main(["compare", str(tmp_path / "mine.toml"), *APP, "--list"]) == 2
    assert "codec is 'top-s', and strategy is 'splitfc'" in capsys.readouterr().err


def test_another_setting_is_another_run_and_the_old_one_is_kept(
    pool: type[Pretender], tmp_path: Path
) -> None:
    command = ["compare", SPLITFC, *APP, "--out", str(tmp_path)]
    main(command)
    (old,) = (tmp_path / "runs").iterdir()
    main([*command, "--set", "num-rounds=3"])
    assert len(pool.made) == 2
    assert (old / "results.json").exists()
    assert len(json.loads((tmp_path / "results.json").read_text())["runs"]) == 1


def test_failed_runs_are_tried_again_and_impossible_ones_are_not(
    pool: type[Pretender], tmp_path: Path
) -> None:
    too_small = (
        "uplink_bits=0.1 is too small for 8 x 8; the smallest that works is 0.25"
    )
    pool.ends = {
        "splitfc": Outcome("impossible", too_small),
        "fedavg": Outcome("failed", "OSError: no space"),
    }
    command = ["compare", SPLITFC, FEDAVG, *APP, "--out", str(tmp_path)]
    assert main(command) == 1
    table = (tmp_path / "table.md").read_text()
    assert "needs at least 0.25 up" in table
    assert "failed: OSError: no space" in table
    pool.ends = {}
    assert main(command) == 0
    assert pool.made == ["splitfc seed 0", "fedavg seed 0", "fedavg seed 0"]


def test_the_model_that_a_failed_run_left_is_not_attacked(
    pool: type[Pretender], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    attacked: list[str] = []

    def attack(run: Path, *_: Any) -> dict[str, Any]:
        attacked.append(run.name)
        return {}

    monkeypatch.setattr("flwr_splitfc.leakage.leakage.attack", attack)
    pool.ends = {"splitfc": Outcome("failed", "ValueError: no test set")}
    command = ["compare", SPLITFC, *APP, "--out", str(tmp_path)]
    assert main(command) == 1
    (run,) = (tmp_path / "runs").iterdir()
    (run / "output").mkdir()
    (run / "output" / "device.pt").touch()
    assert main([*command, "--leakage", "5"]) == 1
    assert attacked == []


def test_a_run_that_could_not_save_its_model_is_named_and_not_attacked(
    pool: type[Pretender], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["compare", SPLITFC, *APP, "--out", str(tmp_path), "--leakage", "5"]
    assert main(command) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    said = capsys.readouterr().err
    assert "splitfc 0.2/0.4 seed 0 cannot be attacked: it could not save" in said
    assert str(folder) in said


def test_files_are_utf8_in_every_locale(tmp_path: Path) -> None:
    strategy = tmp_path / "own.toml"
    strategy.write_text(f"# ±\n{Path(SPLITFC).read_text('utf-8')}", "utf-8")
    command = ["compare", str(strategy), *APP, "--out", str(tmp_path), "--list"]
    ascii_locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    listed = subprocess.run(
        [sys.executable, "-c", MAIN, *command],
        env=os.environ | ascii_locale,
        capture_output=True,
        text=True,
    )
    assert listed.returncode == 0, listed.stderr
    assert listed.stdout.startswith("to do      own-0.2-0.4-seed0-")


def test_an_encoding_without_plus_minus_does_not_stop_the_tables(
    pool: type[Pretender], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(printed, "ascii"))
    assert main(["compare", SPLITFC, *APP, "--out", str(tmp_path)]) == 0
    assert b"mean over the seeds, ? sample standard deviation" in printed.getvalue()
    assert "±" in (tmp_path / "table.md").read_text("utf-8")


def test_everything_is_written(
    pool: type[Pretender],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(output, "pictures", figures.pictures)
    assert (
        main(
            [
                "compare",
                SPLITFC,
                FEDAVG,
                *APP,
                "--out",
                str(tmp_path),
                "--budgets",
                "0.1,0.2",
                "--seeds",
                "0,1",
            ]
        )
        == 0
    )
    names = [
        "accuracy-vs-bytes",
        "accuracy-vs-time",
        "accuracy-vs-round",
        "final-accuracy-vs-bytes",
    ]
    pictures = {f"{name}.{ending}" for name in names for ending in ("svg", "png")}
    tables = {"results.json", "results.csv", "table.md", "index.html"}
    assert {
        path.name for path in tmp_path.iterdir() if path.is_file()
    } == pictures | tables | {".lock"}
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 1 + 2 * 2 + 2
    printed = capsys.readouterr().out
    assert (
        "[6/6] fedavg seed 1: finished in 0:00:00, round 2/2, accuracy 75.0%, 2.00 MB"
        in printed
    )
    assert "| splitfc | 0.1/0.2 | 75.0 ± 0.0 | 2 |" in printed


def test_list_runs_nothing(
    pool: type[Pretender], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "compare",
        "--all",
        "--shelf",
        str(ROOT / "strategies"),
        *APP,
        "--out",
        str(tmp_path / "out"),
        "--list",
    ]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(list((ROOT / "strategies").glob("*.toml")))
    assert all(line.startswith("to do ") for line in lines)
    assert pool.made == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "no strategy to run"),
        ([SPLITFC, "--set", "sede=1"], "has no setting for\n  --set: 'sede'\n"),
        ([SPLITFC, "--set", "results-dir=x"], "each run gets a folder of its own"),
        ([SPLITFC, "--set", "num-devices=2.5"], "num-devices is 2.5, wanted int"),
        ([SPLITFC, "--config", "missing.toml"], r"missing\.toml cannot be read"),
        (["missing.toml"], r"missing\.toml cannot be read"),
        (["--all", "--shelf", "nope"], "--shelf nope is no folder"),
        ([SPLITFC, "--app", "nope"], r"nope is no app: no pyproject\.toml in "),
        (
            [SPLITFC, "--federation-config", "num-nodes=3"],
            "num-nodes=3: unknown setting; use num-supernodes",
        ),
    ],
)
def test_mistakes_are_named_before_anything_runs(
    pool: type[Pretender],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    complaint: str,
) -> None:
    assert main(["compare", *APP, "--out", str(tmp_path / "out"), *arguments]) == 2
    assert re.search(complaint, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("--jobs 0", "--jobs: wanted a whole number, 1 or more, got '0'"),
        ("--jobs a", "--jobs: wanted a whole number, 1 or more, got 'a'"),
        ("--link 10", "--link"),
        ("--target 0.9", "--target"),
        ("--budgets x", "--budgets"),
        ("--seeds a", "--seeds: seeds are whole numbers with commas between, got 'a'"),
        ("--set x", "--set"),
        ("--nonsense", "--nonsense"),
    ],
)
def test_arguments_that_are_none_end_with_the_usage(
    arguments: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["compare", SPLITFC, *APP, *arguments.split()])
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err


def test_missing_matplotlib_is_said_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        extras, "find_spec", lambda name: None if name == "matplotlib" else name
    )
    assert main(["compare", SPLITFC, *APP, "--out", str(tmp_path / "out")]) == 2
    assert "pip install 'flwr-splitfc[compare]'" in capsys.readouterr().err


def test_two_comparisons_do_not_share_a_folder(
    pool: type[Pretender],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(held_folder, "PATIENCE_S", 0.0)
    with (tmp_path / ".lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert main(["compare", SPLITFC, *APP, "--out", str(tmp_path)]) == 2
    assert "another comparison is at work" in capsys.readouterr().err
    assert pool.made == []


def test_a_folder_without_locks_is_a_warning(
    pool: type[Pretender],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As on some network file systems."""

    def flock(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    assert main(["compare", SPLITFC, *APP, "--out", str(tmp_path)]) == 0
    assert pool.made == ["splitfc seed 0"]
    assert f"{tmp_path} cannot be locked: [Errno" in caplog.text


def test_what_is_no_folder_is_refused(
    pool: type[Pretender], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.touch()
    for out in (file, file / "below"):
        assert main(["compare", SPLITFC, *APP, "--out", str(out)]) == 2
        assert f"--out {out} is no folder to write into" in capsys.readouterr().err
    assert pool.made == []


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"flwr-splitfc {flwr_splitfc.__version__}\n"
