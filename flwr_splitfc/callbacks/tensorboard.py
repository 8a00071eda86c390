"""A run in TensorBoard."""

from pathlib import Path
from typing import TYPE_CHECKING

from flwr_splitfc.callbacks.callback import Callback
from flwr_splitfc.callbacks.run_so_far import RunSoFar
from flwr_splitfc.exchange import TrainedStep
from flwr_splitfc.extras import check_installed
from flwr_splitfc.run import Round

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_STEP_NUMBERS = ("loss", "uplink_bits_per_entry", "downlink_bits_per_entry")
_ROUND_NUMBERS = (
    "loss",
    "accuracy",
    "device_accuracy",
    "uplink_bytes",
    "downlink_bytes",
    "uplink_bits_per_entry",
    "downlink_bits_per_entry",
    "feature_error",
    "gradient_error",
    "seconds",
)


class TensorBoard(Callback):
    """Writes a run's numbers into a folder for ``tensorboard --logdir``.

    Those of mini-batches are under ``step/``, over the run's mini-batches; those of
    rounds, with those of evaluation, under ``round/``, over the rounds. What evaluation
    gives under a name that a round has, such as ``loss``, is under ``evaluation/``.

    Parameters
    ----------
    folder : path
        One for each run.
    every_steps : int (default: 1)
        Writes one mini-batch of so many.

    Raises
    ------
    ValueError
        If TensorBoard is not installed, or `every_steps` is below 1.
    """

    def __init__(self, folder: str | Path, *, every_steps: int = 1) -> None:
        check_installed("tensorboard", "tensorboard")
        if every_steps < 1:
            raise ValueError(f"every_steps is {every_steps}, wanted 1 or more")
        self.folder = Path(folder)
        self.every_steps = every_steps
        self._writer: SummaryWriter | None = None

    def on_start(self, run: RunSoFar) -> None:
        # its import takes seconds, and the devices' processes need none of it
        from torch.utils.tensorboard import SummaryWriter

        if not run.rounds:
            self._writer = SummaryWriter(self.folder)
            return
        # what a killed run wrote after its checkpoint is done again
        purge_step = run.steps + 1
        self._writer = SummaryWriter(self.folder, purge_step=purge_step)
        # it takes away rounds of such numbers, too: failed ones have no steps
        for done in run.rounds[purge_step - 1 :]:
            self.on_round(done, run)

    def on_step(self, step: TrainedStep, run: RunSoFar) -> None:
        if run.steps % self.every_steps:
            return
        for name in _STEP_NUMBERS:
            self._add(f"step/{name}", getattr(step, name), run.steps)

    def on_round(self, done: Round, run: RunSoFar) -> None:
        for name in _ROUND_NUMBERS:
            self._add(f"round/{name}", getattr(done, name), done.round)
        for name, value in done.evaluation.items():
            # a name of both is training's above
            group = "evaluation" if name in _ROUND_NUMBERS else "round"
            self._add(f"{group}/{name}", value, done.round)

    def on_end(self, run: RunSoFar) -> None:
        if self._writer is not None:
            self._writer.close()

    def _add(self, tag: str, value: float | None, step: int) -> None:
        if value is not None and self._writer is not None:
            self._writer.add_scalar(tag, value, step)
