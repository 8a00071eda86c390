"""A worker process: what it starts may fork."""

import logging
import subprocess
import sys

import pytest

from flwr_splitfc.compare.workers.messages import (
    Job,
    Report,
    RoundReport,
    report_from_line,
    report_to_line,
)
from flwr_splitfc.compare.workers.worker import RoundReporter
from flwr_splitfc.exchange import Ledger
from flwr_splitfc.run import Progress, Round
from tests.compare.conftest import row

# As a `DataLoader` with workers does in an app's evaluation; a forked process closes its
# standard input first.
FORKS = """
from multiprocessing import get_context
from flwr_splitfc.compare.workers.worker import Jobs

jobs = Jobs()
print(jobs.next().run_id)
child = get_context("fork").Process(target=print, args=["forked"])
child.start()
child.join()
print(jobs.next().run_id)
jobs.done()
"""


def test_a_run_that_goes_on_is_told_with_what_came_before(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "flwr")
    told: list[Report] = []
    reporter = RoundReporter(told.append)
    logger = logging.getLogger("flwr")
    logger.addHandler(reporter)
    progress = Progress(3, Ledger())
    progress.resume(Round.from_json(row(number, 0.5, 1.0)) for number in (1, 2))
    progress.end_round(3, {}, {})
    logger.removeHandler(reporter)
    (report,) = told
    assert isinstance(report, RoundReport)
    assert (report.num_rounds, report.moved_bytes) == (3, 2_000_000)
    assert report.training_s == 2.0 + report.finished.seconds
    assert report_from_line(report_to_line(report)) == report


def test_an_app_may_fork_while_its_worker_waits_for_jobs() -> None:
    first, second = (Job("", {}, {"id": name}).to_line() for name in "ab")
    worker = subprocess.Popen(
        [sys.executable, "-u", "-c", FORKS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # as `WorkerProcess` does: it may end its group
    )
    with worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdin.write(first)
        worker.stdin.flush()
        assert worker.stdout.readline() == "a\n"
        assert worker.stdout.readline() == "forked\n"
        worker.stdin.write(second)
        worker.stdin.flush()
        assert worker.stdout.readline() == "b\n"
