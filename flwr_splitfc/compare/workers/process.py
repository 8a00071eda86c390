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
        path = os.pathsep.join(
            filter(None, [str(app.folder), os.environ.get("PYTHONPATH")])
        )
        with log.open("a") as errors:
            # A session of its own: Ctrl-C is for the parent to hear, and what the
            # worker started ends with its group.
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "flwr_splitfc.compare.workers.worker",
                    json.dumps(task),
                ],
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
        raise WorkerDied(
            f"the worker process ended with exit status {self._process.wait()}"
        )

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
