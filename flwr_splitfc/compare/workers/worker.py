"""A process that holds one simulation open and makes runs in it, one after another.

It reads jobs, one a line, on its standard input, and writes reports on its standard
output; everything that is printed or logged goes into the run's own log. When the input
ends, so does the worker: at once, with all it started, if a run is going on, since then
its parent is gone.
"""

import json
import logging
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeAlias

from flwr.app import Context
from flwr.serverapp import Grid

from flwr_splitfc.codec import BudgetError
from flwr_splitfc.compare.runs import Outcome
from flwr_splitfc.compare.workers.messages import (
    Job,
    Report,
    RoundReport,
    report_to_line,
)
from flwr_splitfc.compare.workers.run_client_app import RunClientApp
from flwr_splitfc.compare.workers.run_grid import RunGrid
from flwr_splitfc.compare.workers.simulation import (
    run_server_app,
    simulate,
    wait_until_ready,
)
from flwr_splitfc.run.results import ResultsError, read_results
from flwr_splitfc.run.rounds import Standing

Tell: TypeAlias = Callable[[Report], None]


class RoundReporter(logging.Handler):
    """A log handler that tells of each round that `Progress` logs."""

    def __init__(self, tell: Tell) -> None:
        super().__init__()
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        """Tell of the round, if the record has one."""
        standing = getattr(record, "standing", None)
        if isinstance(standing, Standing):
            num_rounds = getattr(record, "num_rounds", 0)
            self._tell(
                RoundReport(
                    standing.last, num_rounds, standing.moved_bytes, standing.seconds
                )
            )


class Jobs:
    """The jobs from standard input.

    They are read in a thread, which ends the worker when its parent dies.
    """

    def __init__(self) -> None:
        self._waiting: queue.Queue[Job | None] = queue.Queue()
        self._busy = threading.Event()
        lines = _take_standard_input()
        threading.Thread(target=self._read, args=[lines], daemon=True).start()

    def next(self) -> Job | None:
        """Wait for a job; None when there are no more."""
        return self._waiting.get()

    def done(self) -> None:
        """Note that the run in hand is over.

        To be called before the parent hears of it and sends another.
        """
        self._busy.clear()

    def _read(self, lines: IO[str]) -> None:
        for line in lines:
            self._busy.set()
            self._waiting.put(Job.from_line(line))
        if self._busy.is_set():
            os.killpg(os.getpgrp(), signal.SIGKILL)
        self._waiting.put(None)


def serve(
    server_app: str, client_app: str, num_supernodes: int, backend: dict[str, Any]
) -> None:
    """Make the runs that standard input names, in one simulation.

    Parameters
    ----------
    server_app, client_app : str
        The app's components, ``module:name``.
    num_supernodes : int
    backend : dict
        Flower's ``backend_config``.
    """
    tell = _take_standard_output()
    logging.getLogger("flwr").addHandler(RoundReporter(tell))
    jobs = Jobs()
    first = jobs.next()
    if first is None:
        return
    log_to(first.run_folder.log)

    def main(grid: Grid, context: Context) -> None:
        wait_until_ready(grid, num_supernodes)
        job: Job | None = first
        while job is not None:
            log_to(job.run_folder.log)
            outcome = make_run(server_app, grid, context, job)
            jobs.done()
            tell(outcome)
            job = jobs.next()

    try:
        simulate(main, RunClientApp(client_app), num_supernodes, backend)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        # where the simulation broke, the ServerApp's thread would wait for ever
        os._exit(1)


def _take_standard_input() -> IO[str]:
    """Keep standard input for jobs; others find nothing there.

    A forked process, as of a `DataLoader`, closes its `sys.stdin` first, and would wait
    for ever for a thread of this one that reads it.
    """
    jobs = os.fdopen(os.dup(0))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return jobs


def _take_standard_output() -> Tell:
    """Keep standard output for reports; what others print there goes to the errors."""
    reports = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def tell(report: Report) -> None:
        reports.write(report_to_line(report))

    return tell


def make_run(server_app: str, grid: Grid, context: Context, job: Job) -> Outcome:
    """Make one run, up to its results or to the reason why there are none."""
    try:
        _make_run(server_app, grid, context, job)
    except BudgetError as error:
        return Outcome("impossible", str(error))
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        return Outcome("failed", f"{type(error).__name__}: {error}")
    return Outcome("finished")


def _make_run(server_app: str, grid: Grid, context: Context, job: Job) -> None:
    folder = job.run_folder
    written = folder.output / "results.json"
    written.unlink(missing_ok=True)
    run_grid = RunGrid(grid, job.run_id, job.config)
    run_server_app(server_app, run_grid, context, job.config)
    results = _read_results(written)
    folder.finish({**results, "run": {**job.about, "turns": run_grid.turns}})
    written.unlink()


def _read_results(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise FileNotFoundError(
            f"the app wrote no results.json into its results-dir, {path.parent}"
        )
    try:
        return read_results(path, "rounds", "traffic")
    except ResultsError as error:
        raise ResultsError(f"wanted a file of Progress.write: {error}") from error


def log_to(path: Path) -> None:
    """Append all further output of this process, and of its simulation, to `path`."""
    sys.stdout.flush()
    sys.stderr.flush()
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


if __name__ == "__main__":
    serve(**json.loads(sys.argv[1]))
