"""How runs are handed out to workers, with workers that only pretend to work."""

import errno
import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from flwr_splitfc.compare.flower_app import FlowerApp
from flwr_splitfc.compare.runs import Outcome, Run, RunFolder
from flwr_splitfc.compare.workers import pool as pool_module
from flwr_splitfc.compare.workers.federation import Federation
from flwr_splitfc.compare.workers.messages import Job, Report, RoundReport
from flwr_splitfc.compare.workers.pool import (
    Event,
    Pool,
    RoundFinished,
    RunEnded,
    RunStarted,
)
from flwr_splitfc.compare.workers.process import WorkerDied
from flwr_splitfc.run import Round
from tests.compare.conftest import TOY, row, traffic


class Process:
    """Ends runs as their setting ``mood`` says; "dies once" is of a run's first worker."""

    started: list["Process"]
    tries: Counter[str]

    def __init__(self, app: object, num_supernodes: int, *rest: object) -> None:
        self.num_supernodes = num_supernodes
        self.made: list[str] = []
        self.closed = threading.Event()
        self.started.append(self)

    def make(self, job: Job) -> Iterator[Report]:
        mood = job.config.get("mood")
        self.made.append(job.about["method"])
        self.tries[job.run_id] += 1
        yield RoundReport(Round.from_json(row(1, 0.5, 1.0)), 1, 10**6, 1.0)
        if mood == "hangs":
            self.closed.wait(10)
        if mood in ("dies", "hangs") or (
            mood == "dies once" and self.tries[job.run_id] == 1
        ):
            raise WorkerDied("exit status -9")
        if mood == "ill":
            yield Outcome("failed", "OSError")
        else:
            job.run_folder.finish({"rounds": [], "traffic": traffic()})
            yield Outcome("finished")

    def close(self) -> None:
        self.closed.set()


class Workers:
    """A pool in a folder."""

    def __init__(self, folder: Path, jobs: int = 1) -> None:
        self.pool = Pool(FlowerApp.load(TOY), Federation.of(""), jobs=jobs, lock=0)
        self.folder = folder

    def folder_of(self, run: Run) -> RunFolder:
        return RunFolder(self.folder / run.id)

    def make(self, *runs: Run) -> list[Event]:
        return list(self.pool.make(runs, self.folder_of))

    def states(self, *runs: Run) -> dict[str, str]:
        return {
            event.run.method: event.outcome.state
            for event in self.make(*runs)
            if isinstance(event, RunEnded)
        }


@pytest.fixture(autouse=True)
def processes(monkeypatch: pytest.MonkeyPatch) -> type[Process]:
    Process.started, Process.tries = [], Counter()
    monkeypatch.setattr(pool_module, "WorkerProcess", Process)
    return Process


def run_of(method: str, mood: str = "well", num_devices: int = 2) -> Run:
    return Run(method, {"mood": mood, "num-devices": num_devices}, None, "")


def test_one_worker_makes_all_runs(processes: type[Process], tmp_path: Path) -> None:
    events = Workers(tmp_path).make(run_of("a"), run_of("b"))
    assert [(type(event), event.run.method) for event in events] == [
        (kind, method)
        for method in "ab"
        for kind in (RunStarted, RoundFinished, RunEnded)
    ]
    (worker,) = processes.started
    assert worker.made == ["a", "b"]
    assert worker.closed.is_set()


def test_workers_side_by_side_share_the_runs(
    processes: type[Process], tmp_path: Path
) -> None:
    states = Workers(tmp_path, jobs=3).states(
        *(run_of(method) for method in "abcdefgh")
    )
    assert states == dict.fromkeys("abcdefgh", "finished")
    assert sorted(
        method for worker in processes.started for method in worker.made
    ) == list("abcdefgh")
    assert all(worker.closed.is_set() for worker in processes.started)


def test_another_number_of_devices_needs_another_worker(
    processes: type[Process], tmp_path: Path
) -> None:
    Workers(tmp_path).make(
        run_of("a", num_devices=3),
        run_of("b", num_devices=2),
        run_of("c", num_devices=3),
    )
    assert [(worker.num_supernodes, worker.made) for worker in processes.started] == [
        (2, ["b"]),
        (3, ["a", "c"]),
    ]


def test_a_run_whose_worker_died_is_tried_once_more(
    processes: type[Process], tmp_path: Path
) -> None:
    assert Workers(tmp_path).states(
        run_of("a", "dies once"), run_of("b", "dies"), run_of("c")
    ) == {"a": "finished", "b": "failed", "c": "finished"}
    assert [worker.made for worker in processes.started] == [
        ["a"],
        ["a", "b"],
        ["b"],
        ["c"],
    ]


def test_after_a_failure_the_next_run_gets_a_fresh_worker(
    processes: type[Process], tmp_path: Path
) -> None:
    workers = Workers(tmp_path)
    ill = run_of("a", "ill")
    assert workers.states(ill, run_of("b")) == {"a": "failed", "b": "finished"}
    assert [worker.made for worker in processes.started] == [["a"], ["b"]]
    assert workers.folder_of(ill).outcome().reason == "OSError"


def test_stopping_ends_the_workers_and_fails_no_run(
    processes: type[Process], tmp_path: Path
) -> None:
    workers = Workers(tmp_path, jobs=2)
    runs = [run_of("a", "hangs"), run_of("b", "hangs"), run_of("c")]
    with closing(workers.pool.make(runs, workers.folder_of)) as events:
        for _ in range(4):  # both have begun, and each has had a round
            next(events)
    assert len(processes.started) == 2
    assert all(worker.closed.is_set() for worker in processes.started)
    assert {workers.folder_of(run).outcome().state for run in runs} == {"to do"}


def test_a_full_disk_stops_all_runs_and_names_the_file(
    processes: type[Process], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    workers = Workers(tmp_path, jobs=2)
    runs = [run_of("a", "ill"), run_of("b", "hangs"), run_of("c")]
    named = workers.folder_of(runs[0]).path / "failed.json"
    with pytest.raises(OSError, match=f"No space left on device: '{named}'"):
        workers.make(*runs)
    assert all(worker.closed.is_set() for worker in processes.started)
    assert {workers.folder_of(run).outcome().state for run in runs} == {"to do"}
