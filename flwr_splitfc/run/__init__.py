"""Following a run: a line per round, a table at the end, and the file of its results."""

from flwr_splitfc.run.progress import Progress
from flwr_splitfc.run.record import run_record

__all__ = ["Progress", "run_record"]
