"""Short work of sessions is done in one thread, long work in as many as there are cores."""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Lock, current_thread

import pytest

from flwr_splitfc.exchange.server.endpoint.step_workers import StepWorkers

SESSIONS = 8
# what waits for a second thread that never comes fails instead of hanging
PATIENCE_S = 60.0


def burn(seconds: float) -> None:
    """Take so much of the processor's time."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def make_long(workers: StepWorkers) -> None:
    """Do work that takes longer than Python leaves a thread alone."""
    for _ in range(3):
        workers.do(lambda: burn(20 * sys.getswitchinterval()), sessions=1)


def meet(workers: StepWorkers) -> None:
    """Do two pieces of work, each of which waits for the other."""
    both_there = Barrier(2)
    with ThreadPoolExecutor(2) as sessions:
        works = [
            sessions.submit(
                workers.do, lambda: both_there.wait(PATIENCE_S), sessions=SESSIONS
            )
            for _ in range(2)
        ]
        for work in works:
            work.result()


def test_short_work_is_done_one_piece_at_a_time():
    workers = StepWorkers()
    at_work = Lock()
    threads = set()

    def work() -> None:
        assert at_work.acquire(blocking=False)
        threads.add(current_thread())
        # lets others in, if they may
        time.sleep(0.001)
        at_work.release()

    with ThreadPoolExecutor(SESSIONS) as sessions:
        works = [
            sessions.submit(workers.do, work, sessions=SESSIONS) for _ in range(100)
        ]
        for done in works:
            done.result()
    assert len(threads) == 1


def test_the_work_of_one_session_is_done_in_its_own_thread():
    assert StepWorkers().do(current_thread, sessions=1) is current_thread()


@pytest.mark.skipif(os.cpu_count() == 1, reason="one core has one thread")
def test_long_work_is_done_at_the_same_time():
    workers = StepWorkers()
    make_long(workers)
    meet(workers)


def test_work_that_waits_for_other_work_is_done_at_the_same_time():
    meet(StepWorkers(at_once=2))


def test_what_work_raises_is_raised_where_it_is_wanted():
    def work() -> None:
        raise LookupError("lost")

    workers = StepWorkers()
    for sessions in (1, SESSIONS):
        with pytest.raises(LookupError, match="lost"):
            workers.do(work, sessions)
    assert workers.do(lambda: 7, SESSIONS) == 7
