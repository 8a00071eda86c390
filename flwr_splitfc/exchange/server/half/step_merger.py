"""One step for the mini-batches that wait for a server half at the same time."""

from collections import deque
from collections.abc import Callable, Sequence
from threading import Condition
from typing import NamedTuple, TypeAlias

from torch import Tensor

from flwr_splitfc.exchange.server.half.half_steps import BegunStep, Update
from flwr_splitfc.model.structures import Structure


class WaitingBatch(NamedTuple):
    """A mini-batch that a step is to be made of; see `HalfTrainer.begin_step`."""

    features: Structure
    labels: Tensor
    origin: Update | None
    wanted: Sequence[bool] | None

    def merges_with(self, other: "WaitingBatch") -> bool:
        """Return whether both can be rows of one batch: equal but for their rows."""
        if not isinstance(self.features, Tensor):
            return False
        if not isinstance(other.features, Tensor):
            return False
        same_features = _row_kind(self.features) == _row_kind(other.features)
        same_labels = _row_kind(self.labels) == _row_kind(other.labels)
        return same_features and same_labels


def _row_kind(batch: Tensor) -> tuple[object, ...]:
    return (batch.dtype, batch.shape[1:])


_Alone: TypeAlias = Callable[[WaitingBatch], BegunStep]
_Together: TypeAlias = Callable[[Sequence[WaitingBatch]], Sequence[BegunStep]]


class _Entry:
    """A batch in the queue, and what came of it."""

    def __init__(self, batch: WaitingBatch) -> None:
        self.batch = batch
        self.begun: BegunStep | None = None
        self.error: Exception | None = None

    @property
    def is_done(self) -> bool:
        return self.begun is not None or self.error is not None


class StepMerger:
    """Makes one step of the batches that have come while the last step was made.

    Whoever finds the half free makes the step of all that wait, itself included, in the
    order in which they came; the others get their part of it. Batches that do not fit
    together, or whose step fails, are stepped one by one, so that each is refused for
    its own fault alone.

    Parameters
    ----------
    most : int
        How many batches a step may have.
    alone : callable
        Begins the step of one batch.
    together : callable
        Makes one step of several, whole or not at all.
    """

    def __init__(self, most: int, alone: _Alone, together: _Together) -> None:
        self._most = most
        self._alone = alone
        self._together = together
        self._changed = Condition()
        self._queue: deque[_Entry] = deque()
        self._is_busy = False

    def begin(self, batch: WaitingBatch) -> BegunStep:
        """Return the begun step of a batch, which others may share.

        Raises
        ------
        FeaturesRefused, LabelsRefused, StepRefused
            As the step of this batch alone.
        """
        entry = _Entry(batch)
        with self._changed:
            self._queue.append(entry)
        while not entry.is_done:
            taken = self._take_when_free(entry)
            if taken:
                self._step(taken)
        if entry.error is not None:
            raise entry.error
        assert entry.begun is not None  # one of the two
        return entry.begun

    def _take_when_free(self, entry: _Entry) -> list[_Entry]:
        """Wait until the half is free, or another thread has done the entry.

        Takes the first batch of the queue, and those after it that merge with it.
        """
        with self._changed:
            while self._is_busy and not entry.is_done:
                self._changed.wait()
            if entry.is_done:
                return []
            self._is_busy = True
            return self._take()

    def _take(self) -> list[_Entry]:
        first = self._queue.popleft()
        taken = [first]
        while self._queue and len(taken) < self._most:
            if not self._queue[0].batch.merges_with(first.batch):
                break
            taken.append(self._queue.popleft())
        return taken

    def _step(self, taken: Sequence[_Entry]) -> None:
        try:
            self._step_merged(taken)
        finally:
            with self._changed:
                self._is_busy = False
                self._changed.notify_all()

    def _step_merged(self, taken: Sequence[_Entry]) -> None:
        if len(taken) > 1:
            try:
                steps = self._together([entry.batch for entry in taken])
            except Exception:  # whose fault it is shows below
                pass
            else:
                for entry, begun in zip(taken, steps, strict=True):
                    entry.begun = begun
                return
        for entry in taken:
            try:
                entry.begun = self._alone(entry.batch)
            except Exception as error:  # raised where the batch came from
                entry.error = error
