"""A run as its callbacks see it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from flwr.app import ArrayRecord

from flwr_splitfc.run import Progress, Round

SaveModel: TypeAlias = Callable[[Path, ArrayRecord], None]
"""Writes the model whose arrays it gets into a folder."""


class RunSoFar:
    """A run while it goes on, and how it ended.

    Parameters
    ----------
    progress : Progress
        The run's.
    arrays : ArrayRecord
        What it begins with.
    save : callable
        Writes the model after the last finished round into a folder.

    Attributes
    ----------
    steps : int
        Mini-batches of training so far, those of the round under way among them. A run
        that goes on from a checkpoint goes on counting.
    stopped : str
        Why a callback ends the run; empty if none does.
    error : BaseException or None
        What ended the run, if it is no callback and not the last round: `RunFailed`, or
        `KeyboardInterrupt`.
    """

    def __init__(
        self, progress: Progress, arrays: ArrayRecord, save: SaveModel
    ) -> None:
        self.stopped = ""
        self.error: BaseException | None = None
        self._progress = progress
        self._begins_with = arrays
        self._save = save
        self.count_steps()

    @property
    def num_rounds(self) -> int:
        """Rounds that the run takes, if nothing ends it before."""
        return self._progress.num_rounds

    @property
    def rounds(self) -> Sequence[Round]:
        """The finished rounds, those before a checkpoint among them."""
        return self._progress.finished.rounds

    @property
    def arrays(self) -> ArrayRecord:
        """The arrays after the last finished round.

        They are the device half, or under Flower's own strategies the whole model.
        """
        left = self._progress.finished.arrays
        return self._begins_with if left is None else left

    def evaluates(self, server_round: int) -> bool:
        """Return whether a round has an evaluation."""
        return self._progress.due(server_round)

    def count_steps(self) -> None:
        """Count the mini-batches of the finished rounds."""
        self.steps = sum(done.steps for done in self.rounds)

    def save(self, folder: str | Path) -> None:
        """Write the model as it is after the last finished round.

        The files are those of `SplitLearning.save`; under Flower's own strategies
        ``joined.pt`` alone.
        """
        self._save(Path(folder), self.arrays)

    def stop(self, reason: str) -> None:
        """End the run after this round; its row, model and checkpoint are kept.

        Parameters
        ----------
        reason : str
            For the log and ``results.json``; the first one counts.
        """
        self.stopped = self.stopped or reason
