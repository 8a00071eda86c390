"""The batches of a device's turn, and evaluation of the whole model."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flwr_splitfc.settings import RunConfig, check_least, read_settings

Augment = Callable[[Tensor], Tensor]


class Samples(Protocol):
    """Labelled samples: an index gives inputs (B, ...) and labels (B, ...)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Tensor, /) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True, eq=False)
class Batches:
    """Batches of one turn; their order, and what `augment` draws, come from torch's global generator.

    With `steps`, as many batches of exactly `batch_size`, drawn with replacement;
    without, one shuffled epoch.
    """

    data: Samples
    batch_size: int
    steps: int = 0
    augment: Augment | None = None

    def __len__(self) -> int:
        return self.steps or -(-len(self.data) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for indices in self._indices():
            inputs, labels = self.data[indices]
            yield self.augment(inputs) if self.augment else inputs, labels

    def _indices(self) -> Iterator[Tensor]:
        if self.steps:
            return (
                torch.randint(len(self.data), (self.batch_size,))
                for _ in range(self.steps)
            )
        return iter(torch.randperm(len(self.data)).split(self.batch_size))


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
    """A device's batches to train on in a turn, as the run-config says, and those to evaluate on.

    The latter are one pass over `test`, or over `data` where there are no samples to
    test on.
    """
    settings = read_settings(TurnSettings, config)
    rows = settings.batch_size
    return Batches(data, rows, settings.steps_per_turn, augment), Batches(
        data if test is None else test, rows
    )


def evaluate(
    model: nn.Module, test: Samples, batch_size: int = 1000
) -> dict[str, float]:
    """Mean cross-entropy and accuracy of the joined model over all labels; the model keeps its mode.

    The model gives scores (B, classes, ...) for labels (B, ...): of a sample, or of
    each of its places.
    """
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    loss, correct, count = 0.0, 0, 0
    with torch.inference_mode():
        for indices in torch.arange(len(test)).split(batch_size):
            inputs, labels = (part.to(device) for part in test[indices])
            logits = model(inputs)
            loss += F.cross_entropy(logits, labels, reduction="sum").item()
            correct += int((logits.argmax(1) == labels).sum())
            count += labels.numel()
    model.train(was_training)
    return {"loss": loss / count, "accuracy": correct / count}
