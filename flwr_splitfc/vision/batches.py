"""The batches of a device's turn, and evaluation of the whole model."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Augment = Callable[[Tensor], Tensor]


class Samples(Protocol):
    """Labelled samples: an index gives inputs (B, ...) and labels (B,)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Tensor, /) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True, eq=False)
class Batches:
    """Batches of one turn; their order, and what `augment` draws, come from torch's global generator.

    With `steps`, as many batches of exactly `batch_size`, drawn with replacement; without, one shuffled epoch.
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
            return (torch.randint(len(self.data), (self.batch_size,)) for _ in range(self.steps))
        return iter(torch.randperm(len(self.data)).split(self.batch_size))


def evaluate(model: nn.Module, test: Samples, batch_size: int = 1000) -> dict[str, float]:
    """Mean cross-entropy and accuracy of the joined model, which is left in the mode it was in."""
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    loss, correct = 0.0, 0
    with torch.inference_mode():
        for indices in torch.arange(len(test)).split(batch_size):
            inputs, labels = (part.to(device) for part in test[indices])
            logits = model(inputs)
            loss += F.cross_entropy(logits, labels, reduction="sum").item()
            correct += int((logits.argmax(1) == labels).sum())
    model.train(was_training)
    return {"loss": loss / len(test), "accuracy": correct / len(test)}
