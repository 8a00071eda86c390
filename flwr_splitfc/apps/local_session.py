"""A stand-in for a session where the device holds the whole model."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from flwr_splitfc.apps.accuracy import labels_that_count
from flwr_splitfc.exchange.device.pipeline import LabelledBatches
from flwr_splitfc.model import LossFn
from flwr_splitfc.model.structures import Structure, rows_of


class LocalSession:
    """Local stand-in for a `Session`: it gets the whole model's outputs.

    Parameters
    ----------
    loss_fn : callable or None
        ``loss_fn(outputs, labels)``; needed for training.
    seed : int
        For what is random in the turn, such as the order of batches.
    """

    # no server waits for a last frame
    closing = None

    def __init__(self, loss_fn: LossFn | None, seed: int) -> None:
        self.seed = seed
        self._loss_fn = loss_fn
        self._rows = 0
        self._labels = 0
        self._steps = 0
        self._loss_sum = 0.0
        self._predicted_rows = 0
        self._predictions = 0

    def __enter__(self) -> "LocalSession":
        return self

    def __exit__(self, *error: object) -> None:
        return

    def loss(self, outputs: Structure, labels: Tensor) -> Tensor:
        """Return the loss of the outputs."""
        assert self._loss_fn is not None  # SplitClientApp has seen to it
        loss = self._loss_fn(outputs, labels)
        counted = labels_that_count(self._loss_fn, outputs, labels)
        # a mean over nothing is no number
        if counted:
            self._loss_sum += loss.item() * counted
        self._labels += counted
        self._rows += len(labels)
        self._steps += 1
        return loss

    def pipelined(
        self, model: nn.Module, batches: LabelledBatches, depth: int | None = None
    ) -> Iterator[Tensor]:
        """Yield the losses of batches: no answer travels, so one is under way."""
        for x, y in batches:
            yield self.loss(model(x), y)

    def predict(self, outputs: Structure) -> Structure:
        """Return the outputs themselves."""
        self._predicted_rows += rows_of(outputs)
        self._predictions += 1
        return outputs

    def metrics(self) -> dict[str, Any]:
        """Return the metrics of `Session.metrics`, without those of traffic.

        They are of what was trained, or else of what was predicted.
        """
        if not self._steps:
            return {"num-examples": self._predicted_rows, "steps": self._predictions}
        return {
            "num-examples": self._rows,
            "steps": self._steps,
            "train_loss": self._loss_sum / max(self._labels, 1),
        }
