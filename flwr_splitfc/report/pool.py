"""Worker processes side by side, and the runs handed out to them."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from flwr_splitfc.report.app import FlowerApp, Scalar, Settings, SettingsError
from flwr_splitfc.report.runs import Outcome, Run, RunFolder

_TRIES = 2
_END_S = 30.0


@dataclass(frozen=True)
class Event:
    """What has happened to a run: "start", "round" (with a row) or "end" (with an outcome)."""

    kind: str
    run: Run
    slot: int
    row: dict[str, Any] = field(default_factory=dict)
    num_rounds: int = 0
    outcome: Outcome = field(default_factory=partial(Outcome, "to do"))


class WorkerDied(RuntimeError):
    """A worker process ended in the middle of a run."""


class Worker:
    """One process with one simulation; see `flwr_splitfc.report.worker`.

    Parameters
    ----------
    app : FlowerApp
    num_supernodes : int
    backend : dict
        Flower's ``backend_config``: what a device and the whole simulation may use.
    lock : int
        A file descriptor that the worker holds open as long as it lives.
    log : Path
        Where its errors go until it has a run.
    """

    def __init__(self, app: FlowerApp, num_supernodes: int, backend: dict[str, Any], lock: int, log: Path) -> None:
        self.num_supernodes = num_supernodes
        task = {
            "server_app": app.server_app,
            "client_app": app.client_app,
            "num_supernodes": num_supernodes,
            "backend": backend,
        }
        path = os.pathsep.join(filter(None, [str(app.folder), os.environ.get("PYTHONPATH")]))
        with log.open("a") as errors:
            # A session of its own: Ctrl-C is for the parent to hear, and what the worker started ends with its group.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "flwr_splitfc.report.worker", json.dumps(task)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, "PYTHONPATH": path},
                pass_fds=[lock],
                start_new_session=True,
                text=True,
            )

    def make(self, job: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Hand over a run; the events of it, the last one "end"."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
        for line in self._process.stdout:
            event = json.loads(line)
            yield event
            if event["event"] == "end":
                return
        raise WorkerDied(f"the worker process ended with exit status {self._process.wait()}")

    def close(self) -> None:
        """Let the worker end: in good order, or at once if it is in a run."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_S)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class Pool:
    """Makes runs in so many workers side by side.

    A worker's simulation has a fixed number of SuperNodes, so a run that needs another number gets a new
    worker. A run whose worker died is tried once more.

    Parameters
    ----------
    app : FlowerApp
    jobs : int
        Workers side by side.
    num_supernodes : callable
        Gives the SuperNodes that a run needs.
    backend : dict
        As in `Worker`.
    lock : int
        As in `Worker`.
    checkpoints : bool
        Whether an interrupted run shall go on in its middle, if the app can.
    """

    def __init__(
        self,
        app: FlowerApp,
        *,
        jobs: int,
        num_supernodes: Callable[[Settings], int],
        backend: dict[str, Any],
        lock: int,
        checkpoints: bool = True,
    ) -> None:
        self._app = app
        self._jobs = jobs
        self._num_supernodes = num_supernodes
        self._backend = backend
        self._lock_fd = lock
        self._checkpoints = checkpoints
        self._workers: dict[int, Worker] = {}
        self._stopped = threading.Event()
        self._guard = threading.Lock()

    def make(self, runs: Sequence[Run], folder_of: Callable[[Run], RunFolder]) -> Generator[Event, None, None]:
        """Make the runs; what happens, as it happens. Closing the iterator stops them."""
        waiting = sorted(runs, key=lambda run: self._num_supernodes(run.config))
        events: queue.Queue[Event | None] = queue.Queue()
        threads = [
            threading.Thread(target=self._work, args=(slot, waiting, folder_of, events), daemon=True)
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
                for event in self._worker(slot, self._num_supernodes(run.config), folder.log).make(job):
                    if event["event"] == "end":
                        outcome = Outcome(event["state"], event.get("reason", ""))
                    else:
                        yield Event("round", run, slot, event["row"], event["num_rounds"])
                break
            except WorkerDied as error:
                self._drop_worker(slot)
                outcome = Outcome("failed", str(error))
                if self._stopped.is_set():
                    return
        if outcome.state == "failed":
            self._drop_worker(slot)  # Flower goes on using a device's process that has died
        folder.end(outcome)
        yield Event("end", run, slot, outcome=folder.outcome())

    def _worker(self, slot: int, num_supernodes: int, log: Path) -> Worker:
        worker = self._workers.get(slot)
        if worker is not None and worker.num_supernodes == num_supernodes:
            return worker
        self._drop_worker(slot)
        with self._guard:
            if self._stopped.is_set():
                raise WorkerDied("stopped")
            self._workers[slot] = Worker(self._app, num_supernodes, self._backend, self._lock_fd, log)
            return self._workers[slot]

    def _drop_worker(self, slot: int) -> None:
        with self._guard:
            worker = self._workers.pop(slot, None)
        if worker is not None:
            worker.close()


def backend_config(options: Settings, jobs: int) -> dict[str, Any]:
    """Flower's ``backend_config`` from options as in ``flwr run --federation-config``.

    Each of several workers gets its share of the CPU cores unless the options say otherwise.

    >>> backend_config({"client-resources-num-gpus": 0.5}, jobs=1)["client_resources"]
    {'num_cpus': 1, 'num_gpus': 0.5}
    """
    config: dict[str, dict[str, Scalar]] = {
        "client_resources": {"num_cpus": 1, "num_gpus": 0},
        "init_args": {"address": "local"},  # a simulation of its own, also beside a running Ray cluster
    }
    if jobs > 1:
        config["init_args"]["num_cpus"] = max(1, (os.cpu_count() or 1) // jobs)
    for key, value in options.items():
        group, _, name = key.replace("-", "_").partition("_num_")
        if group not in config or name not in ("cpus", "gpus"):
            raise SettingsError(f"--federation-config has no setting {key!r} here")
        config[group][f"num_{name}"] = value
    return config
