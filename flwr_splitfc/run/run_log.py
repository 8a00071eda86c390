"""What the log says of a run before its first round and after its last."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from logging import getLogger

from flwr.app import ArrayRecord

from flwr_splitfc.run.columns import megabytes
from flwr_splitfc.run.flower_lines import quiet_flower
from flwr_splitfc.run.progress import Progress
from flwr_splitfc.run.round_bar import round_bar

logger = getLogger("flwr")


@contextmanager
def run_log(name: str, progress: Progress, arrays: ArrayRecord) -> Iterator[None]:
    """Log the run in the block: a line at its start, one a round, one at its end.

    Parameters
    ----------
    name : str
        The strategy's, as users know it.
    progress : Progress
        The run's, which logs the rounds.
    arrays : ArrayRecord
        What devices train.
    """
    size_bytes = sum(len(array.data) for array in arrays.values())
    logger.info(
        "Starting %s: %d rounds, devices train %s MB",
        name,
        progress.num_rounds,
        megabytes(size_bytes),
    )
    started = time.monotonic()
    with quiet_flower(), round_bar(progress.num_rounds, len(progress.rounds)):
        yield
    seconds = round(time.monotonic() - started)
    logger.info("Finished in %s", timedelta(seconds=seconds))
