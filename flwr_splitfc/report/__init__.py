"""Following a run: a line per round, a table at the end, and the file of its results."""

from flwr_splitfc.report.progress import Progress

__all__ = ["Progress"]
