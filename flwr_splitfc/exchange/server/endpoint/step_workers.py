"""The threads in which the frames of sessions are answered."""

import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

# torch keeps 1.5 MB for each thread that ever trained
_MOST_THREADS = min(os.cpu_count() or 1, 4)
# the share of the last work in what is usual
_NEWEST_SHARE = 0.1

_Result = TypeVar("_Result")


class StepWorkers:
    """Does the work of sessions, in one thread where it is short.

    Short work is Python's for the most part. A second thread that does some at the same
    time only takes the interpreter's lock from the first: with 8 sessions of float32
    and mini-batches of 64, one thread makes 1.3 times the steps of two. Long work is
    torch's and the codecs', which give the lock away: with `splitfc-rd` and 256
    samples, two threads make 1.3 times the steps of one. (Both on two cores.)

    Parameters
    ----------
    at_once : int (default: 1)
        How much work to do at the same time, at least.
    """

    def __init__(self, at_once: int = 1) -> None:
        # they end with the service
        self._one = ThreadPoolExecutor(1, thread_name_prefix="split-step")
        self._several = ThreadPoolExecutor(
            max(_MOST_THREADS, at_once), thread_name_prefix="split-steps"
        )
        self._at_once = at_once
        # of the processor's time, without what was waited for
        self._usual_s = 0.0

    def do(self, work: Callable[[], _Result], sessions: int) -> _Result:
        """Do some work, and return or raise what it does.

        Parameters
        ----------
        work : callable
        sessions : int
            How many there are that may have some.
        """
        # to hand it over and to wait for it takes a tenth of a step
        if sessions == 1:
            return self._measured(work)
        # so long may a thread keep the lock from others
        is_short = self._usual_s < sys.getswitchinterval()
        threads = self._one if is_short and self._at_once == 1 else self._several
        return threads.submit(self._measured, work).result()

    def _measured(self, work: Callable[[], _Result]) -> _Result:
        started = time.thread_time()
        try:
            return work()
        finally:
            seconds = time.thread_time() - started
            self._usual_s += _NEWEST_SHARE * (seconds - self._usual_s)
