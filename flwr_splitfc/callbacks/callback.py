"""What may listen to a run."""

from collections.abc import Sequence

from flwr_splitfc.callbacks.run_so_far import RunSoFar
from flwr_splitfc.exchange import TrainedStep
from flwr_splitfc.run import Round


class Callback:
    """Listens to a run: override the methods that you need.

    A strategy calls its callbacks one after another, and never two at once. An error in
    one is a warning in the log, and the run goes on: training is worth more than a line
    of a tracker.

    Examples
    --------
    >>> class PrintLoss(Callback):
    ...     def on_round(self, done: Round, run: RunSoFar) -> None:
    ...         print(f"{done.round} of {run.num_rounds}: {done.loss}")
    """

    def on_start(self, run: RunSoFar) -> None:
        """Begin: before the first round, or before the first after a checkpoint."""

    def on_step(self, step: TrainedStep, run: RunSoFar) -> None:
        """Hear of a mini-batch of training; `RunSoFar.steps` is its number in the run.

        It is called when the device has its answer, in a thread that answers other
        devices, too, so their next mini-batches wait for it. Runs of Flower's own
        strategies have no such steps.
        """

    def on_round(self, done: Round, run: RunSoFar) -> None:
        """Hear of a finished round, after its evaluation; `run.stop` ends the run."""

    def on_end(self, run: RunSoFar) -> None:
        """End, however the run ended: see `RunSoFar.stopped` and `RunSoFar.error`."""


def check_callbacks(callbacks: Sequence[Callback]) -> None:
    """Refuse what is no list of callbacks.

    Raises
    ------
    ValueError
    """
    if isinstance(callbacks, Callback):
        raise ValueError(f"callbacks is one, wanted a list: [{callbacks!r:.100}]")
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise ValueError(
                f"callbacks has {callback!r:.100}, wanted objects of classes that "
                "inherit from flwr_splitfc.callbacks.Callback"
            )
