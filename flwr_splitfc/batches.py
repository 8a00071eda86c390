"""The batches of a device's turn, and evaluation of the whole model."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import nan
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flwr_splitfc.settings import RunConfig, check_least, read_settings

Augment = Callable[[Tensor], Tensor]
"""Changes a batch of inputs at random."""


class Samples(Protocol):
    """Labelled samples: an index gives inputs (B, ...) and labels (B, ...)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Tensor, /) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True, eq=False)
class Batches:
    """The batches of one turn.

    Their order, and what `augment` draws, come from torch's global generator.

    Parameters
    ----------
    data : Samples
    batch_size : int
    steps : int (default: 0)
        As many batches of exactly `batch_size`, drawn with replacement; 0 is one
        shuffled epoch.
    augment : callable, optional
        Applied to the inputs of each batch.
    """

    data: Samples
    batch_size: int
    steps: int = 0
    augment: Augment | None = None

    def __len__(self) -> int:
        if self.steps:
            return self.steps
        return -(-len(self.data) // self.batch_size)  # rounded up

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for indices in self._indices():
            inputs, labels = self.data[indices]
            if self.augment is not None:
                inputs = self.augment(inputs)
            yield inputs, labels

    def _indices(self) -> Iterable[Tensor]:
        """Return the indices of each batch's samples."""
        count = len(self.data)
        if self.steps:
            return (torch.randint(count, (self.batch_size,)) for _ in range(self.steps))
        epoch: Iterable[Tensor] = torch.randperm(count).split(self.batch_size)
        return epoch


@dataclass(frozen=True)
class TurnSettings:
    """The batches of a device's turn, in a run-config.

    Parameters
    ----------
    batch_size : int
    steps_per_turn : int
        Batches drawn with replacement; 0 is one epoch of the device's samples.
    """

    batch_size: int = 64
    steps_per_turn: int = 0

    def __post_init__(self) -> None:
        check_least(self, batch_size=1, steps_per_turn=0)


def turn_batches(
    data: Samples,
    config: RunConfig,
    augment: Augment | None = None,
    *,
    test: Samples | None = None,
) -> tuple[Batches, Batches]:
    """Return a device's batches to train on in a turn, and those to evaluate on.

    The run-config says how many there are to train on. Those to evaluate on are one
    pass over `test`, or over `data` where there are no samples to test on.
    """
    settings = read_settings(TurnSettings, config)
    batch_size = settings.batch_size
    train = Batches(data, batch_size, settings.steps_per_turn, augment)
    evaluation = Batches(data if test is None else test, batch_size)
    return train, evaluation


def counted_labels(scores: Tensor, labels: Tensor) -> Tensor:
    """Return which labels (B, ...) are those of a class of scores (B, classes, ...).

    Others are marks, such as -100, or 255 for pixels that have no class.
    """
    classes = scores.shape[1]
    # a byte would be compared with the lowest byte of a larger number
    indices = labels.long()
    return (indices >= 0) & (indices < classes)


def evaluate(
    model: nn.Module, test: Samples, batch_size: int = 1000
) -> dict[str, float]:
    """Return the joined model's mean cross-entropy and accuracy over all labels.

    The model gives scores (B, classes, ...) for labels (B, ...): of a sample, or of
    each of its places. Labels that are no class's, such as -100 and 255, are left out.
    Where none counts, the loss and the accuracy are NaN. It keeps its mode.
    """
    was_training = model.training
    device = next(model.parameters()).device
    loss = 0.0
    correct = 0
    count = 0
    model.eval()
    with torch.inference_mode():
        for indices in torch.arange(len(test)).split(batch_size):
            inputs, labels = test[indices]
            labels = labels.to(device)
            if not labels.is_floating_point():
                labels = labels.long()
            scores = model(inputs.to(device))
            counted = counted_labels(scores, labels)
            labels = labels.masked_fill(~counted, -100)  # which cross_entropy ignores
            loss += F.cross_entropy(scores, labels, reduction="sum").item()
            correct += int((scores.argmax(1) == labels).sum())
            count += int(counted.sum())
    model.train(was_training)
    if not count:
        return {"loss": nan, "accuracy": nan}
    return {"loss": loss / count, "accuracy": correct / count}
