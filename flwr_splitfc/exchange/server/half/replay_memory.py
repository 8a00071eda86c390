"""The newest mini-batches of a server half, to train on once more."""

from collections import deque
from logging import getLogger
from typing import NamedTuple

import torch
from torch import Tensor

from flwr_splitfc.model.structures import Structure, leaves_of, mapped

logger = getLogger("flwr")

MOST_BYTES = 2**26


class KeptBatch(NamedTuple):
    """A mini-batch as the server half took it, on its device.

    Parameters
    ----------
    features : structure of Tensor of shape (B, ...)
        Decoded, and without a graph.
    labels : Tensor of shape (B, ...)
    """

    features: Structure
    labels: Tensor

    @classmethod
    def of(cls, features: Structure, labels: Tensor) -> "KeptBatch":
        """Return a mini-batch of copies, without a graph.

        A half may write into its features, and a loss into its labels.
        """
        return cls(mapped(features, _copied), _copied(labels))

    @property
    def size_bytes(self) -> int:
        """Of all its tensors."""
        tensors = [*leaves_of(self.features), self.labels]
        return sum(tensor.nbytes for tensor in tensors)


class ReplayMemory:
    """Keeps the newest mini-batches, as many as `MOST_BYTES` allow."""

    def __init__(self) -> None:
        self._batches: deque[KeptBatch] = deque()
        self._kept_bytes = 0
        self._has_warned = False

    def keep(self, batch: KeptBatch) -> None:
        """Keep a mini-batch, and drop the oldest ones that have no room beside it.

        One that has no room by itself is left out, with a warning for the first.
        """
        if batch.size_bytes > MOST_BYTES:
            self._warn(batch)
            return
        self._batches.append(batch)
        self._kept_bytes += batch.size_bytes
        while self._kept_bytes > MOST_BYTES:
            self._kept_bytes -= self._batches.popleft().size_bytes

    def _warn(self, batch: KeptBatch) -> None:
        if not self._has_warned:
            logger.warning(
                "a mini-batch of %.1f MiB, features and labels, is not replayed: "
                "replay_steps keeps %.0f MiB. Make mini-batches smaller to replay them",
                batch.size_bytes / 2**20,
                MOST_BYTES / 2**20,
            )
        self._has_warned = True

    def draw(self, generator: torch.Generator) -> KeptBatch | None:
        """Return a copy of one, each as likely as the others; None if there is none."""
        if not self._batches:
            return None
        place = torch.randint(
            len(self._batches), (), generator=generator, device=generator.device
        )
        return KeptBatch.of(*self._batches[int(place)])


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()
