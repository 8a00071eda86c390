"""A process that holds one simulation open and makes runs in it, one after another.

It reads a run per line of JSON on its standard input and writes what happens, a line of
JSON each, on its standard output; everything that is printed or logged goes into the
run's own log. When the input ends, so does the worker: at once, with all it started, if
a run is going on, since then its parent is gone.
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
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid

from flwr_splitfc.codec import BudgetError
from flwr_splitfc.compare.runs import RunFolder
from flwr_splitfc.compare.workers.simulation import (
    RunClientApp,
    RunGrid,
    run_server_app,
    simulate,
    wait_until_ready,
)

Tell = Callable[[dict[str, Any]], None]


class Rows(logging.Handler):
    """Tells of each round that `Progress` logs."""

    def __init__(self, tell: Tell) -> None:
        super().__init__()
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        """Pass the round's row on."""
        if (row := getattr(record, "progress_row", None)) is not None:
            self._tell(
                {
                    "event": "round",
                    "row": row,
                    "num_rounds": getattr(record, "num_rounds", 0),
                }
            )


class Jobs:
    """The runs to make, from standard input, and the eye on whether anyone still wants them."""

    def __init__(self) -> None:
        self._jobs: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._busy = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def next(self) -> dict[str, Any] | None:
        """Wait for a run; None when there are no more."""
        return self._jobs.get()

    def done(self) -> None:
        """The run in hand is over; to be called before anyone hears of it and sends another."""
        self._busy.clear()

    def _read(self) -> None:
        for line in sys.stdin:
            self._busy.set()
            self._jobs.put(json.loads(line))
        if self._busy.is_set():
            os.killpg(os.getpgrp(), signal.SIGKILL)
        self._jobs.put(None)


def serve(
    server_app: str, client_app: str, num_supernodes: int, backend: dict[str, Any]
) -> None:
    """Make the runs that standard input names, in one simulation."""
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # only events go to the parent

    def tell(event: dict[str, Any]) -> None:
        events.write(json.dumps(event) + "\n")

    logging.getLogger("flwr").addHandler(Rows(tell))
    jobs = Jobs()
    first = jobs.next()
    if first is None:
        return
    log_to(RunFolder(Path(first["folder"])).log)

    def main(grid: Grid, context: Context) -> None:
        wait_until_ready(grid, num_supernodes)
        job: dict[str, Any] | None = first
        while job is not None:
            log_to(RunFolder(Path(job["folder"])).log)
            outcome = make_run(server_app, grid, context, job)
            jobs.done()
            tell({"event": "end", **outcome})
            job = jobs.next()

    try:
        simulate(main, RunClientApp(client_app), num_supernodes, backend)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        # where the simulation broke, the ServerApp's thread would wait for ever
        os._exit(1)


def make_run(
    server_app: str, grid: Grid, context: Context, job: dict[str, Any]
) -> dict[str, Any]:
    """One run from its start to its results, or to the reason why there are none."""
    folder = RunFolder(Path(job["folder"]))
    run_grid = RunGrid(grid, job["about"]["id"], job["config"])
    written = folder.output / "results.json"
    written.unlink(missing_ok=True)
    try:
        run_server_app(server_app, run_grid, context, job["config"])
        if not written.exists():
            raise FileNotFoundError(
                f"the app wrote no results.json into its results-dir, {folder.output}"
            )
        results = json.loads(written.read_text())
        if not {"rounds", "traffic"} <= results.keys():
            raise ValueError(
                "the app's results.json was not written by Progress.write: it has no rounds and traffic"
            )
        folder.finish({**results, "run": {**job["about"], "turns": run_grid.turns}})
        written.unlink()
    except BudgetError as error:
        return {"state": "impossible", "reason": str(error)}
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        return {"state": "failed", "reason": f"{type(error).__name__}: {error}"}
    return {"state": "finished"}


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
