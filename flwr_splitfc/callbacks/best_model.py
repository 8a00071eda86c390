"""The best model of a run, kept as files."""

import logging
from collections.abc import Sequence
from pathlib import Path
from shutil import rmtree

from flwr_splitfc.callbacks.callback import Callback
from flwr_splitfc.callbacks.round_metric import RoundMetric
from flwr_splitfc.callbacks.run_so_far import RunSoFar
from flwr_splitfc.run import Round
from flwr_splitfc.run.results import write_whole
from flwr_splitfc.settings import under_key

logger = logging.getLogger("flwr")


def check_model_folders(
    callbacks: Sequence[Callback], save_to: str | Path | None
) -> None:
    """Refuse a `BestModel` into whose folder another model is written, too.

    Parameters
    ----------
    callbacks : sequence of Callback
    save_to : path or None
        Where the last model goes.

    Raises
    ------
    ValueError
        It names the folder.
    """
    taken: dict[Path, str] = {}
    best_models = [each for each in callbacks if isinstance(each, BestModel)]
    if best_models and save_to is not None:
        with under_key("save_to"):
            taken[Path(save_to).resolve()] = "the last model, by save_to or results-dir"
    for best_model in best_models:
        folder = best_model.folder.resolve()
        if folder in taken:
            raise ValueError(
                f"the folder of a BestModel is {str(best_model.folder)!r}, into which "
                f"goes {taken[folder]}, too: wanted one of its own"
            )
        taken[folder] = "the model of another BestModel"


class BestModel(Callback):
    """Writes the model into a folder whenever a round has the best metric so far.

    A file ``round.txt`` beside those of the model has the number of the round that all
    of them are of. It is missing while they take their places, and where a kill left
    them half way.

    Parameters
    ----------
    folder : path
        For the files of `SplitLearning.save`, and for no other model's.
    metric : str (default: "highest accuracy")
        As in `EarlyStopping`. Up to the first evaluation a field of `Round` counts, so
        that a run without one has its best model, too.

    Attributes
    ----------
    best : Round or None
        The round with the best metric so far.
    """

    def __init__(self, folder: str | Path, metric: str = "highest accuracy") -> None:
        self.folder = Path(folder)
        self.metric = RoundMetric.parse(metric)
        self.best: Round | None = None

    @property
    def is_kept(self) -> bool:
        """Whether the folder has the model of the best round.

        It has not where a disk was full, and where the run began with another folder.
        """
        try:
            number = self._mark.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return False
        return self.best is not None and number == str(self.best.round)

    def on_start(self, run: RunSoFar) -> None:
        # of a run that was killed
        rmtree(self._new, ignore_errors=True)
        self.best = self._best_of(run.rounds)
        if not self.is_kept:
            # of another run, or of a round that is made once more
            self._mark.unlink(missing_ok=True)
            self._write_if_it_was_not(run)
        if not self.is_kept:
            self._tell()

    def on_round(self, done: Round, run: RunSoFar) -> None:
        if run.evaluates(done.round):
            self.metric.check_known(run.rounds)
        self.best = self._best_of(run.rounds)
        if self.best is done:
            self._write(done, run)

    def on_end(self, run: RunSoFar) -> None:
        self._write_if_it_was_not(run)
        self._tell()

    @property
    def _mark(self) -> Path:
        return self.folder / "round.txt"

    @property
    def _new(self) -> Path:
        return self.folder / ".new"

    def _write_if_it_was_not(self, run: RunSoFar) -> None:
        """Write what a kill, Ctrl-C or a full disk left out.

        It can be if it is of the last round: models of rounds before are gone.
        """
        if self.best is None or self.is_kept:
            return
        if self.best is run.rounds[-1]:
            self._write(self.best, run)

    def _write(self, best: Round, run: RunSoFar) -> None:
        try:
            self._replace_files(best, run)
        except OSError as error:
            logger.warning(
                "The model of round %d is the best so far, and could not be written "
                "into %s: %s",
                best.round,
                self.folder,
                error,
            )

    def _replace_files(self, best: Round, run: RunSoFar) -> None:
        try:
            # all of them, before one is replaced: the disk may be full
            run.save(self._new)
            self._mark.unlink(missing_ok=True)
            for file in self._new.iterdir():
                file.replace(self.folder / file.name)
            write_whole(self._mark, f"{best.round}\n")
        finally:
            rmtree(self._new, ignore_errors=True)

    def _tell(self) -> None:
        if self.best is None:
            return
        (value,) = self.metric.of([self.best])
        level, where = logging.INFO, f"and is in {self.folder}"
        if not self.is_kept:
            level = logging.WARNING
            where = (
                f"but {self.folder} does not have it: it could not be written, or is "
                "in the folder of the run's earlier part"
            )
        logger.log(
            level,
            "The model of round %d is the best (%s: %.4g), %s",
            self.best.round,
            self.metric,
            value,
            where,
        )

    def _best_of(self, rounds: Sequence[Round]) -> Round | None:
        """Return the first of the rounds that have the best metric."""
        best = None
        best_value = None
        values = self.metric.of(rounds)
        for done, value in zip(rounds, values, strict=True):
            if value is not None and self.metric.is_better(value, best_value):
                best, best_value = done, value
        return best
