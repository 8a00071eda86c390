"""Mini-batches that go up and whose answers nobody waits for."""

from collections import deque

from torch import Tensor

from flwr_splitfc.exchange.device.steps import SentStep, Steps
from flwr_splitfc.model.structures import Structure, mapped, rows_of


class OneWaySteps:
    """Steps whose answers, which hold a loss and no gradient, are taken later.

    Parameters
    ----------
    steps : Steps
    most : int
        How many may be under way at once, the newest one included.
    every : int
        Of so many mini-batches one goes up, the first.
    """

    def __init__(self, steps: Steps, most: int, every: int) -> None:
        self.steps = steps
        self.most = most
        self.every = every
        self._under_way: deque[SentStep] = deque()

    def offer(self, features: Structure, labels: Tensor) -> None:
        """Send a mini-batch if it is its turn, and otherwise count it.

        An empty one takes no turn.
        """
        rows = rows_of(features)
        if rows == 0:
            return
        counts = self.steps.counts
        goes_up = counts.offered % self.every == 0
        counts.offered += 1
        if goes_up:
            self._send(features, labels)
        else:
            counts.unsent_rows += rows

    def _send(self, features: Structure, labels: Tensor) -> None:
        """Send a mini-batch, and take the first answer if enough are under way."""
        detached = mapped(features, Tensor.detach)
        step = self.steps.begin(detached, labels.detach())
        self._under_way.append(step)
        if len(self._under_way) == self.most:
            self._take_answer()

    def settle(self) -> None:
        """Wait for all answers."""
        while self._under_way:
            self._take_answer()

    def _take_answer(self) -> None:
        self.steps.end(self._under_way.popleft())
