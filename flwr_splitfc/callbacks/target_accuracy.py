"""An end to runs that are good enough."""

from flwr_splitfc.callbacks.callback import Callback
from flwr_splitfc.callbacks.round_metric import RoundMetric
from flwr_splitfc.callbacks.run_so_far import RunSoFar
from flwr_splitfc.run import Round

_ACCURACY = RoundMetric("accuracy", "highest")


class TargetAccuracy(Callback):
    """Ends a run in the first round that reaches an accuracy.

    Parameters
    ----------
    target : float
        Above 0 and at most 1.

    Raises
    ------
    ValueError
    """

    def __init__(self, target: float) -> None:
        if not 0 < target <= 1:
            raise ValueError(
                f"the target accuracy is {target}, wanted above 0 and at most 1, "
                "such as 0.9 for 90%"
            )
        self.target = target

    def on_start(self, run: RunSoFar) -> None:
        self._check(run)

    def on_round(self, done: Round, run: RunSoFar) -> None:
        if run.evaluates(done.round):
            _ACCURACY.check_known(run.rounds)
        self._check(run)

    def _check(self, run: RunSoFar) -> None:
        for done in run.rounds:
            if done.accuracy is not None and done.accuracy >= self.target:
                run.stop(
                    f"the accuracy of round {done.round} is {done.accuracy:.1%}, "
                    f"and the target {self.target:.1%}"
                )
