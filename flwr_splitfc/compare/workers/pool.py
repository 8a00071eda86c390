"""Worker processes side by side, and the runs handed out to them."""

import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from flwr_splitfc.compare.flower_app import FlowerApp
from flwr_splitfc.compare.runs import Outcome, Run, RunFolder
from flwr_splitfc.compare.workers.federation import Federation
from flwr_splitfc.compare.workers.messages import Job, RoundReport
from flwr_splitfc.compare.workers.process import WorkerDied, WorkerProcess

_TRIES = 2


@dataclass(frozen=True)
class RunStarted:
    """A run has begun."""

    run: Run


@dataclass(frozen=True)
class RoundFinished:
    """A run has finished one of its rounds."""

    run: Run
    report: RoundReport


@dataclass(frozen=True)
class RunEnded:
    """A run is over."""

    run: Run
    outcome: Outcome


Event: TypeAlias = RunStarted | RoundFinished | RunEnded
FolderOf: TypeAlias = Callable[[Run], RunFolder]
_Events: TypeAlias = "queue.Queue[Event | OSError | None]"


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
        Workers side by side, each with a number: its slot.
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
        self._worker_in: dict[int, WorkerProcess] = {}
        self._stopped = threading.Event()
        self._guard = threading.Lock()

    def make(
        self, runs: Sequence[Run], folder_of: FolderOf
    ) -> Generator[Event, None, None]:
        """Make the runs, and give what happens, as it happens.

        Closing the iterator stops the runs.

        Raises
        ------
        OSError
            If a run's folder cannot be written, as on a full disk. It stops the runs.
        """
        # Runs with one number of SuperNodes follow each other, and share a worker.
        waiting = sorted(runs, key=self._num_supernodes)
        events: _Events = queue.Queue()
        threads = [
            threading.Thread(
                target=self._work, args=(slot, waiting, folder_of, events), daemon=True
            )
            for slot in range(min(self._jobs, len(waiting)))
        ]
        for thread in threads:
            thread.start()
        try:
            yield from _until_all_end(events, len(threads))
        finally:
            self._stop()

    def _stop(self) -> None:
        self._stopped.set()
        with self._guard:
            workers = list(self._worker_in.values())
        for worker in workers:
            worker.close()

    def _num_supernodes(self, run: Run) -> int:
        return self._federation.num_supernodes(run.config)

    def _work(
        self, slot: int, waiting: list[Run], folder_of: FolderOf, events: _Events
    ) -> None:
        """Make waiting runs in one slot; put their events, and None at the end.

        An error of a run's folder is put, too: raised here it would end this thread
        alone.
        """
        try:
            while not self._stopped.is_set():
                with self._guard:
                    if not waiting:
                        break
                    run = waiting.pop(0)
                for event in self._make(slot, run, folder_of(run)):
                    events.put(event)
        except OSError as error:
            events.put(error)
        finally:
            self._drop_worker(slot)
            events.put(None)

    def _make(self, slot: int, run: Run, folder: RunFolder) -> Iterator[Event]:
        folder.start()
        yield RunStarted(run)
        outcome = Outcome("to do")
        for _ in range(_TRIES):
            try:
                outcome = yield from self._try(slot, run, folder)
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
        yield RunEnded(run, folder.outcome())

    def _try(
        self, slot: int, run: Run, folder: RunFolder
    ) -> Generator[Event, None, Outcome]:
        """Make a run once, and return its outcome."""
        job = Job(
            str(folder.path.resolve()),
            folder.complete_config(run, checkpoints=self._checkpoints),
            run.about,
        )
        outcome = Outcome("to do")
        worker = self._worker(slot, self._num_supernodes(run), folder.log)
        for report in worker.make(job):
            if isinstance(report, Outcome):
                outcome = report
            else:
                yield RoundFinished(run, report)
        return outcome

    def _worker(self, slot: int, num_supernodes: int, log: Path) -> WorkerProcess:
        """Return the slot's worker, a new one if it has none with so many devices."""
        worker = self._worker_in.get(slot)
        if worker is not None and worker.num_supernodes == num_supernodes:
            return worker
        self._drop_worker(slot)
        with self._guard:
            if self._stopped.is_set():
                raise WorkerDied("stopped")
            worker = WorkerProcess(
                self._app, num_supernodes, self._federation.backend, self._lock_fd, log
            )
            self._worker_in[slot] = worker
            return worker

    def _drop_worker(self, slot: int) -> None:
        with self._guard:
            worker = self._worker_in.pop(slot, None)
        if worker is not None:
            worker.close()


def _until_all_end(events: _Events, threads: int) -> Iterator[Event]:
    while threads:
        event = events.get()
        if event is None:
            threads -= 1
        elif isinstance(event, OSError):
            raise event
        else:
            yield event
