"""A worker process: what it starts may fork."""

import subprocess
import sys

from flwr_splitfc.compare.workers.messages import Job

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
