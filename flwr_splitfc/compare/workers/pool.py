"""Worker processes side by side, and the runs handed out to them."""

import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from flwr_splitfc.compare.flower_app import FlowerApp
from flwr_splitfc.compare.runs import Outcome, Run, RunFolder
from flwr_splitfc.compare.workers.federation import Federation
from flwr_splitfc.compare.workers.process import WorkerDied, WorkerProcess

_TRIES = 2


@dataclass(frozen=True)
class Event:
    """What has happened to a run: "start", "round" (with a row) or "end" (with an outcome)."""

    kind: str
    run: Run
    slot: int
    row: dict[str, Any] = field(default_factory=dict)
    num_rounds: int = 0
    outcome: Outcome = field(default_factory=partial(Outcome, "to do"))


class Pool:
    """Makes runs in so many workers side by side.

    A worker's simulation has a fixed number of SuperNodes, so a run that needs another
    number gets a new worker. A run whose worker died is tried once more.

    Parameters
    ----------
    app : FlowerApp
    federation : Federation
        Of each worker.
    jobs : int
        Workers side by side.
    lock : int
        As in `WorkerProcess`.
    checkpoints : bool
        Whether an interrupted run shall go on in its middle, if the app can.
    """

    def __init__(
        self,
        app: FlowerApp,
        federation: Federation,
        *,
        jobs: int,
        lock: int,
        checkpoints: bool = True,
    ) -> None:
        self._app = app
        self._federation = federation
        self._jobs = jobs
        self._lock_fd = lock
        self._checkpoints = checkpoints
        self._workers: dict[int, WorkerProcess] = {}
        self._stopped = threading.Event()
        self._guard = threading.Lock()

    def make(
        self, runs: Sequence[Run], folder_of: Callable[[Run], RunFolder]
    ) -> Generator[Event, None, None]:
        """Make the runs; what happens, as it happens. Closing the iterator stops them."""
        waiting = sorted(
            runs, key=lambda run: self._federation.num_supernodes(run.config)
        )
        events: queue.Queue[Event | None] = queue.Queue()
        threads = [
            threading.Thread(
                target=self._work, args=(slot, waiting, folder_of, events), daemon=True
            )
            for slot in range(min(self._jobs, len(waiting)))
        ]
        for thread in threads:
            thread.start()
        try:
            for _ in threads:
                while (event := events.get()) is not None:
                    yield event
        finally:
            self._stopped.set()
            with self._guard:
                workers = list(self._workers.values())
            for worker in workers:
                worker.close()

    def _work(
        self,
        slot: int,
        waiting: list[Run],
        folder_of: Callable[[Run], RunFolder],
        events: "queue.Queue[Event | None]",
    ) -> None:
        try:
            while not self._stopped.is_set():
                with self._guard:
                    if not waiting:
                        break
                    run = waiting.pop(0)
                for event in self._make(slot, run, folder_of(run)):
                    events.put(event)
        finally:
            self._drop_worker(slot)
            events.put(None)

    def _make(self, slot: int, run: Run, folder: RunFolder) -> Iterator[Event]:
        folder.start()
        job = {
            "folder": str(folder.path.resolve()),
            "config": folder.complete_config(run, checkpoints=self._checkpoints),
            "about": run.about,
        }
        yield Event("start", run, slot)
        outcome = Outcome("to do")
        for _ in range(_TRIES):
            try:
                for event in self._worker(
                    slot, self._federation.num_supernodes(run.config), folder.log
                ).make(job):
                    if event["event"] == "end":
                        outcome = Outcome(event["state"], event.get("reason", ""))
                    else:
                        yield Event(
                            "round", run, slot, event["row"], event["num_rounds"]
                        )
                break
            except WorkerDied as error:
                self._drop_worker(slot)
                outcome = Outcome("failed", str(error))
                if self._stopped.is_set():
                    return
        if outcome.state == "failed":
            # Flower goes on using a device's process that has died
            self._drop_worker(slot)
        folder.end(outcome)
        yield Event("end", run, slot, outcome=folder.outcome())

    def _worker(self, slot: int, num_supernodes: int, log: Path) -> WorkerProcess:
        worker = self._workers.get(slot)
        if worker is not None and worker.num_supernodes == num_supernodes:
            return worker
        self._drop_worker(slot)
        with self._guard:
            if self._stopped.is_set():
                raise WorkerDied("stopped")
            self._workers[slot] = WorkerProcess(
                self._app, num_supernodes, self._federation.backend, self._lock_fd, log
            )
            return self._workers[slot]

    def _drop_worker(self, slot: int) -> None:
        with self._guard:
            worker = self._workers.pop(slot, None)
        if worker is not None:
            worker.close()
