"""A worker process, as its parent sees it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from flwr_splitfc.compare.flower_app import FlowerApp
from flwr_splitfc.compare.runs import Outcome
from flwr_splitfc.compare.workers.messages import Job, Report, report_from_line

_MODULE = "flwr_splitfc.compare.workers.worker"
_END_S = 30.0


class WorkerDied(RuntimeError):
    """A worker process ended in the middle of a run."""


class WorkerProcess:
    """One process with one simulation; see `flwr_splitfc.compare.workers.worker`.

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

    def __init__(
        self,
        app: FlowerApp,
        num_supernodes: int,
        backend: dict[str, Any],
        lock: int,
        log: Path,
    ) -> None:
        self.num_supernodes = num_supernodes
        task = {
            "server_app": app.server_app,
            "client_app": app.client_app,
            "num_supernodes": num_supernodes,
            "backend": backend,
        }
        with log.open("a") as errors:
            # A session of its own: Ctrl-C is for the parent to hear, and what the
            # worker started ends with its group.
            self._process = subprocess.Popen(
                [sys.executable, "-m", _MODULE, json.dumps(task)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=_environment(app),
                pass_fds=[lock],
                start_new_session=True,
                text=True,
            )

    def make(self, job: Job) -> Iterator[Report]:
        """Hand over a run, and give its reports, the last one its outcome.

        Raises
        ------
        WorkerDied
            If the process ends before.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(job.to_line())
            self._process.stdin.flush()
        for line in self._process.stdout:
            report = report_from_line(line)
            yield report
            if isinstance(report, Outcome):
                return
        status = self._process.wait()
        raise WorkerDied(f"the worker process ended with exit status {status}")

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


def _environment(app: FlowerApp) -> dict[str, str]:
    """Return this process's environment, in which the app can be imported."""
    path = str(app.folder)
    further = os.environ.get("PYTHONPATH")
    if further:
        path = f"{path}{os.pathsep}{further}"
    return {**os.environ, "PYTHONPATH": path}
