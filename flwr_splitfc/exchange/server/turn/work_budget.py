"""A budget of memory for what all sessions have in work at once."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition


class WorkBudget:
    """Lets work begin as long as all that is in work fits into a budget.

    What does not fit waits, in the order in which it came. Work that is larger than the
    whole budget begins when nothing else is in work.

    Parameters
    ----------
    total_bytes : int

    Attributes
    ----------
    in_work_bytes : int
        Of all work that has begun and is not over.
    """

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self.in_work_bytes = 0
        self._changed = Condition()
        self._waiting: deque[object] = deque()

    @contextmanager
    def work(self, work_bytes: int) -> Iterator[None]:
        """Wait until work of so many bytes may begin, and note its end."""
        self._begin(work_bytes)
        try:
            yield
        finally:
            with self._changed:
                self.in_work_bytes -= work_bytes
                self._wake()

    def _begin(self, work_bytes: int) -> None:
        me = object()
        with self._changed:
            self._waiting.append(me)
            while self._waiting[0] is not me or not self._fits(work_bytes):
                self._changed.wait()
            self._waiting.popleft()
            self.in_work_bytes += work_bytes
            # the next one may fit beside this one
            self._wake()

    def _wake(self) -> None:
        if self._waiting:
            self._changed.notify_all()

    def _fits(self, work_bytes: int) -> bool:
        nothing_else = self.in_work_bytes == 0
        return nothing_else or self.in_work_bytes + work_bytes <= self.total_bytes
