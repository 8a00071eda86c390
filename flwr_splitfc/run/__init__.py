"""What every run writes: a line per round, a table at the end, and ``results.json``."""

from flwr_splitfc.run.progress import Progress
from flwr_splitfc.run.record import run_record
from flwr_splitfc.run.rounds import Round

__all__ = ["Progress", "Round", "run_record"]
