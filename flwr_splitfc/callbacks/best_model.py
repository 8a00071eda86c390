"""The best model of a run, kept as files."""

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
        self.best = None
        for done in run.rounds:
            if self._is_best(done):
                self.best = done

    def on_round(self, done: Round, run: RunSoFar) -> None:
        if run.evaluates(done.round):
            self.metric.check_known(run.rounds)
        if self._is_best(done):
            run.save(self.folder)
            self.best = done

    def on_end(self, run: RunSoFar) -> None:
        if self.best is not None:
            logger.info(
                "The model of round %d is the best (%s: %.4g), and is in %s",
                self.best.round,
                self.metric,
                self.metric.of(self.best),
                self.folder,
            )

    def _is_best(self, done: Round) -> bool:
        value = self.metric.of(done)
        if value is None:
            return False
        before = None if self.best is None else self.metric.of(self.best)
        return self.metric.is_better(value, before)
