"""An end to runs that get no better."""

from flwr_splitfc.callbacks.callback import Callback
from flwr_splitfc.callbacks.round_metric import RoundMetric
from flwr_splitfc.callbacks.run_so_far import RunSoFar
from flwr_splitfc.run import Round


class EarlyStopping(Callback):
    """Ends a run whose metric has not improved for some rounds.

    It looks at all rounds each time and remembers nothing: a run that goes on from a
    checkpoint ends where an undisturbed one does.

    Parameters
    ----------
    patience : int
        So many rounds that have the metric, one after another and none better than the
        best before.
    metric : str (default: "highest accuracy")
        "highest" or "lowest", and a number that the app's evaluation returns or a field
        of `Round`. Of a name that both have, evaluation's counts, so "lowest loss" is
        the training loss only where evaluation returns no ``loss``. No run ends before
        the first round that is due for evaluation, which tells.
    least_change : float (default: 0.0)
        By how much the metric has to improve to count.

    Raises
    ------
    ValueError
    """

    def __init__(
        self,
        patience: int,
        metric: str = "highest accuracy",
        *,
        least_change: float = 0.0,
    ) -> None:
        if patience < 1:
            raise ValueError(f"patience is {patience}, wanted 1 or more")
        if not least_change >= 0:
            raise ValueError(f"least_change is {least_change}, wanted 0 or more")
        self.patience = patience
        self.metric = RoundMetric.parse(metric)
        self.least_change = least_change

    def on_start(self, run: RunSoFar) -> None:
        self._check(run)

    def on_round(self, done: Round, run: RunSoFar) -> None:
        if run.evaluates(done.round):
            self.metric.check_known(run.rounds)
        self._check(run)

    def _check(self, run: RunSoFar) -> None:
        # before, a field of the rounds may stand in for a number of evaluation
        if not any(run.evaluates(done.round) for done in run.rounds):
            return
        best: float | None = None
        best_round = since = 0
        values = self.metric.of(run.rounds)
        for done, value in zip(run.rounds, values, strict=True):
            if value is None:
                continue
            if self._improves(value, best):
                best, best_round, since = value, done.round, 0
            else:
                since += 1
        if since >= self.patience:
            run.stop(
                f"the {self.metric} was {best:.4g} in round {best_round}, "
                f"and {since} rounds have not improved it"
            )

    def _improves(self, value: float, best: float | None) -> bool:
        if best is None:
            return True
        enough = abs(value - best) >= self.least_change
        return enough and self.metric.is_better(value, best)
