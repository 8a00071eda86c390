"""The best model of a run, kept as files."""

from collections.abc import Sequence
from logging import getLogger
from pathlib import Path

from flwr_splitfc.callbacks.callback import Callback
from flwr_splitfc.callbacks.round_metric import RoundMetric
from flwr_splitfc.callbacks.run_so_far import RunSoFar
from flwr_splitfc.run import Round

logger = getLogger("flwr")


class BestModel(Callback):
    """Writes the model into a folder whenever a round has the best metric so far.

    Parameters
    ----------
    folder : path
        For the files of `SplitLearning.save`.
    metric : str (default: "highest accuracy")
        As in `EarlyStopping`.

    Attributes
    ----------
    best : Round or None
        The round whose model is in the folder.
    """

    def __init__(self, folder: str | Path, metric: str = "highest accuracy") -> None:
        self.folder = Path(folder)
        self.metric = RoundMetric.parse(metric)
        self.best: Round | None = None

    def on_start(self, run: RunSoFar) -> None:
        # a run that goes on has written its best before
        self.best = self._best_of(run.rounds)

    def on_round(self, done: Round, run: RunSoFar) -> None:
        if run.evaluates(done.round):
            self.metric.check_known(run.rounds)
        self.best = self._best_of(run.rounds)
        if self.best is done:
            run.save(self.folder)

    def on_end(self, run: RunSoFar) -> None:
        if self.best is not None:
            (value,) = self.metric.of([self.best])
            logger.info(
                "The model of round %d is the best (%s: %.4g), and is in %s",
                self.best.round,
                self.metric,
                value,
                self._where(),
            )

    def _where(self) -> str:
        if any(self.folder.glob("*.pt")):
            return str(self.folder)
        return "the folder of the run's earlier part, which went to its checkpoint"

    def _best_of(self, rounds: Sequence[Round]) -> Round | None:
        """Return the first of the rounds that have the best metric."""
        best = None
        best_value = None
        values = self.metric.of(rounds)
        for done, value in zip(rounds, values, strict=True):
            if value is not None and self.metric.is_better(value, best_value):
                best, best_value = done, value
        return best
