"""The callbacks of a run, called one at a time."""

from collections.abc import Callable, Sequence
from logging import getLogger
from threading import RLock
from types import TracebackType

from flwr.app import ArrayRecord, MetricRecord

from flwr_splitfc.callbacks.callback import Callback
from flwr_splitfc.callbacks.round_metric import UnknownMetric
from flwr_splitfc.callbacks.run_so_far import RunSoFar
from flwr_splitfc.exchange import StepListener, TrainedStep
from flwr_splitfc.run.progress import EvaluateFn

logger = getLogger("flwr")


class RunStopped(Exception):
    """A callback ends the run: the way out of `Strategy.start`, which has no other."""


class Notifier:
    """Calls the callbacks of a run, for as long as it is entered as a context manager.

    Parameters
    ----------
    callbacks : sequence of Callback
    run : RunSoFar
    """

    def __init__(self, callbacks: Sequence[Callback], run: RunSoFar) -> None:
        self._callbacks = callbacks
        self._run = run
        # sessions tell their steps from threads of their own
        self._one_at_a_time = RLock()
        self._warned: set[str] = set()

    def __enter__(self) -> "Notifier":
        self._call("on_start", lambda callback: callback.on_start(self._run))
        self._log_stop()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._run.error = error
        self._call("on_end", lambda callback: callback.on_end(self._run))

    @property
    def on_step(self) -> StepListener | None:
        """Tells of a step; None where no callback wants to hear."""
        kinds = [type(callback) for callback in self._callbacks]
        listening = any(kind.on_step is not Callback.on_step for kind in kinds)
        return self._tell_step if listening else None

    def watch(self, end_of_round: EvaluateFn) -> EvaluateFn:
        """Make an ``evaluate_fn`` for `Strategy.start` that tells of each round.

        Parameters
        ----------
        end_of_round : callable
            Called before; it enters the round into the run's progress.

        Raises
        ------
        RunStopped
            By what is returned, at the end of a round, if a callback ends the run.
        """

        def then_tell(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            metrics = end_of_round(server_round, arrays)
            if server_round > 0:
                self._tell_round()
            return metrics

        return then_tell

    def _tell_step(self, step: TrainedStep) -> None:
        with self._one_at_a_time:
            self._run.steps += 1
            self._call("on_step", lambda callback: callback.on_step(step, self._run))

    def _tell_round(self) -> None:
        run = self._run
        run.count_steps()
        done = run.rounds[-1]
        self._call("on_round", lambda callback: callback.on_round(done, run))
        self._log_stop()
        if run.stopped:
            raise RunStopped(run.stopped)

    def _log_stop(self) -> None:
        run = self._run
        if run.stopped:
            done = len(run.rounds)
            logger.info(
                "Stops after round %d of %d: %s", done, run.num_rounds, run.stopped
            )

    def _call(self, hook: str, call: Callable[[Callback], None]) -> None:
        with self._one_at_a_time:
            for callback in self._callbacks:
                try:
                    call(callback)
                except Exception as error:
                    self._warn(callback, hook, error)

    def _warn(self, callback: Callback, hook: str, error: Exception) -> None:
        """Log an error of a callback: the first in a hook for all to see."""
        name = f"{type(callback).__name__}.{hook}"
        log = logger.debug if name in self._warned else logger.warning
        self._warned.add(name)
        # a wrong name in a setting is told without lines of code
        named = isinstance(error, UnknownMetric)
        why = str(error) if named else repr(error)
        log("%s failed, and the run goes on: %s", name, why, exc_info=not named)
