"""Flower's own strategies, on the whole model."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from flwr_splitfc.callbacks import Callback, RunSoFar
from flwr_splitfc.callbacks.callback import check_callbacks
from flwr_splitfc.callbacks.notifier import Notifier, RunStopped
from flwr_splitfc.run import Progress
from flwr_splitfc.run.progress import EvaluateFn
from flwr_splitfc.run.run_log import run_log
from flwr_splitfc.strategy.counted_means import counted_means
from flwr_splitfc.strategy.failed_rounds import FailedRounds
from flwr_splitfc.strategy.overflow import NotCombined, combined
from flwr_splitfc.strategy.saved_halves import save_whole


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
    callbacks : sequence of Callback
        What listens to the run, and may end it.

    Attributes
    ----------
    evaluation : MetricRecord or None
        What devices found in the round, if they evaluated.
    """

    def __init__(
        self,
        strategy: Strategy,
        progress: Progress,
        max_failed_rounds: int,
        callbacks: Sequence[Callback],
    ) -> None:
        check_callbacks(callbacks)
        self.strategy = strategy
        self.progress = progress
        self.callbacks = callbacks
        self._failed_rounds = FailedRounds(progress, max_failed_rounds)
        self._sent = ArrayRecord()
        self.evaluation: MetricRecord | None = None

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
    ) -> Result:
        """Train as `Strategy.start` does, log it, and tell the callbacks.

        The `Result` of a run that a callback ended has its arrays alone.

        Raises
        ------
        RunFailed
            If every device failed in too many rounds, or in all.
        """
        name = type(self.strategy).__name__
        so_far = RunSoFar(self.progress, initial_arrays, _save)
        end_of_round = self.progress.watch(evaluate_fn, lambda: self.evaluation)
        with (
            run_log(name, self.progress, initial_arrays),
            Notifier(self.callbacks, so_far) as notifier,
        ):
            try:
                result = super().start(
                    grid,
                    initial_arrays,
                    num_rounds,
                    timeout,
                    train_config,
                    evaluate_config,
                    notifier.watch(end_of_round),
                )
            except RunStopped:
                result = Result(arrays=so_far.arrays)
        self._failed_rounds.check_end()
        return result

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the strategy's messages."""
        self._sent = arrays
        return self.strategy.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the strategy's averages.

        Raises
        ------
        RunFailed
            If every device failed once too often, or what comes of their arrays is not
            finite.
        """
        replies = list(replies)
        self._failed_rounds.check(server_round, replies)
        try:
            return combined(self.strategy, server_round, replies, self._sent)
        except NotCombined as error:
            self._failed_rounds.fail(server_round, str(error))
            return None, None

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
            averages = self.strategy.aggregate_evaluate(server_round, replies)
            self.evaluation = counted_means(
                averages, self.strategy, server_round, replies
            )
        return self.evaluation

    def summary(self) -> None:
        """Log the strategy's settings."""
        self.strategy.summary()


def _save(folder: Path, arrays: ArrayRecord) -> None:
    save_whole(folder, arrays.to_torch_state_dict())
