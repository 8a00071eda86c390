"""Flower's own strategies, on the whole model."""

from collections.abc import Iterable
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from flwr_splitfc.run import Progress
from flwr_splitfc.run.run_log import run_log
from flwr_splitfc.strategy.failed_rounds import FailedRounds


class WholeModelStrategy(Strategy):
    """A strategy of Flower's whose devices evaluate in the rounds that are due.

    Parameters
    ----------
    strategy : Strategy
        Does everything else.
    progress : Progress
        Says which rounds are due.
    max_failed_rounds : int
        As in `SplitLearning`.

    Attributes
    ----------
    evaluation : MetricRecord or None
        What devices found in the round, if they evaluated.
    """

    def __init__(
        self, strategy: Strategy, progress: Progress, max_failed_rounds: int
    ) -> None:
        self.strategy = strategy
        self.progress = progress
        self._failed_rounds = FailedRounds(progress, max_failed_rounds)
        self.evaluation: MetricRecord | None = None

    def start(
        self, grid: Grid, initial_arrays: ArrayRecord, *args: Any, **kwargs: Any
    ) -> Result:
        """Train as `Strategy.start` does, and log it."""
        name = type(self.strategy).__name__
        with run_log(name, self.progress, initial_arrays):
            return super().start(grid, initial_arrays, *args, **kwargs)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the strategy's messages."""
        return self.strategy.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the strategy's averages.

        Raises
        ------
        RunFailed
            If every device failed once too often.
        """
        replies = list(replies)
        self._failed_rounds.check(server_round, replies)
        return self.strategy.aggregate_train(server_round, replies)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the strategy's messages, in the rounds that evaluate."""
        self.evaluation = None
        if not self.progress.due(server_round):
            return []
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Return the strategy's averages; None in a round without evaluation."""
        replies = list(replies)
        if replies:
            self.evaluation = self.strategy.aggregate_evaluate(server_round, replies)
        return self.evaluation

    def summary(self) -> None:
        """Log the strategy's settings."""
        self.strategy.summary()
