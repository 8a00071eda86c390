"""The file ``results.json`` of an app's run, from its first round on."""

import time
from collections.abc import Callable
from logging import getLogger
from pathlib import Path
from typing import Any

from flwr_splitfc.callbacks import BestModel, Callback, RunSoFar
from flwr_splitfc.run import Progress, Round, run_record
from flwr_splitfc.settings import RunConfig
from flwr_splitfc.strategy import RunFailed

# A file of a thousand rounds is a megabyte: not after each of them, and the less often
# the longer it takes.
_EVERY_S = 5.0
_MOST_SHARE = 0.05  # of the time, for writing

logger = getLogger("flwr")


class ResultsFile(Callback):
    """Writes ``results.json`` while a run goes on, and at its end.

    A run that is killed leaves its rounds up to some seconds before. One that an error
    of the app's own ends, as of its evaluation, leaves its model beside the file.

    Parameters
    ----------
    path : Path
    config : mapping
        The run-config.
    seed : int
    best_model : BestModel or None
        What keeps the run's best model.
    """

    def __init__(
        self, path: Path, config: RunConfig, seed: int, best_model: BestModel | None
    ) -> None:
        self.path = path
        self._record = run_record(config, seed=seed)
        self._best_model = best_model
        self._stopped = ""
        self._due_at = 0.0
        # from `follow` on
        self._progress: Callable[[], Progress]
        self._about: Callable[[], dict[str, Any]]

    def follow(
        self, progress: Callable[[], Progress], about: Callable[[], dict[str, Any]]
    ) -> None:
        """Say where the rounds come from, and what else the file has of the run."""
        self._progress = progress
        self._about = about

    def on_round(self, done: Round, run: RunSoFar) -> None:
        begun = time.monotonic()
        if begun >= self._due_at:
            self.write(unfinished=True)
            written = time.monotonic()
            self._due_at = written + max(_EVERY_S, (written - begun) / _MOST_SHARE)

    def on_end(self, run: RunSoFar) -> None:
        self._stopped = run.stopped
        # Ctrl-C and `RunFailed` are the strategy's to handle
        if isinstance(run.error, Exception) and not isinstance(run.error, RunFailed):
            self._save(run)

    def write(self, **outcome: Any) -> None:
        """Write the file, with how the run ended unless it went to its last round.

        Raises
        ------
        OSError
        """
        about = {**self._record, **self._about(), **self._best()}
        if self._stopped:
            about["stopped"] = self._stopped
        self._progress().write(self.path, **about, **outcome)

    def _save(self, run: RunSoFar) -> None:
        if run.rounds:
            run.save(self.path.parent)
            logger.info("Saved the model in %s", self.path.parent)

    def _best(self) -> dict[str, Any]:
        keeps = self._best_model
        if keeps is None or keeps.best is None:
            return {}
        (value,) = keeps.metric.of([keeps.best])
        best = {"round": keeps.best.round, keeps.metric.name: value}
        # as where a disk was full: "best/" has the model of another round then
        return {"best": best if keeps.is_kept else {**best, "kept": False}}
