"""What a comparison shows while it runs."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from rich.console import Console
from rich.live import Live
from rich.table import Table

from flwr_splitfc.compare.runs import Outcome, Run
from flwr_splitfc.compare.workers.messages import RoundReport
from flwr_splitfc.compare.workers.pool import Event, RoundFinished, RunEnded, RunStarted
from flwr_splitfc.run.columns import (
    NO_VALUE,
    Column,
    last_known,
    megabytes,
    terminal_table,
)
from flwr_splitfc.run.rounds import Round


class Display:
    """One live table of the runs in hand, over plain lines of what has happened.

    Where the output is no terminal there are only the lines.

    Parameters
    ----------
    total : int
        Runs of the comparison.
    finished_s : dict
        How long the runs took that were finished before, by run id.
    jobs : int
        Runs side by side.
    console : Console, optional
    """

    def __init__(
        self,
        total: int,
        finished_s: Mapping[str, float],
        *,
        jobs: int = 1,
        console: Console | None = None,
    ) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        self._total = total
        self._jobs = jobs
        self._took_s = dict(finished_s)
        self._settled = len(finished_s)
        self._running: dict[str, _RunInHand] = {}
        self._live = Live(
            console=self.console, get_renderable=self.table, refresh_per_second=2
        )

    def __enter__(self) -> "Display":
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.console.is_terminal:
            self._live.stop()

    def show(self, event: Event) -> None:
        """Take in what has happened."""
        match event:
            case RunStarted(run):
                self._running[run.id] = _RunInHand(run)
                self._say(run, "started")
            case RoundFinished(run, report):
                in_hand = self._running[run.id]
                in_hand.add(report)
                if (
                    report.finished.accuracy is not None
                    and not self.console.is_terminal
                ):
                    self._say(run, in_hand.line())
            case RunEnded(run, outcome):
                in_hand = self._running.pop(run.id)
                self._settled += 1
                self._took_s[run.id] = in_hand.training_s
                self._say(run, _ending(run, outcome, in_hand))

    def _say(self, run: Run, what: str) -> None:
        counted = f"[{self._settled}/{self._total}]"
        self.console.print(f"{counted} {run.label}: {what}", markup=False)

    def table(self) -> Table:
        """Return the table of the runs in hand."""
        return terminal_table(
            _COLUMNS,
            list(self._running.values()),
            title=self._title(),
            title_justify="left",
            box=None,
            padding=(0, 2, 0, 0),
        )

    def _title(self) -> str:
        title = f"{self._settled} of {self._total} runs"
        left_s = self._left_s()
        return title if left_s is None else f"{title}, about {_clock(left_s)} to go"

    def _left_s(self) -> float | None:
        """Estimate the time to the end, None while nothing is known.

        Runs not yet begun take as long as others did, or will, on average.
        """
        known_s = list(self._took_s.values())
        left_s = 0.0
        for in_hand in self._running.values():
            if in_hand.left_s is not None:
                known_s.append(in_hand.training_s + in_hand.left_s)
                left_s += in_hand.left_s
        if not known_s:
            return None
        mean_s = sum(known_s) / len(known_s)
        waiting = self._total - self._settled - len(self._running)
        return (left_s + waiting * mean_s) / self._jobs


class _RunInHand:
    """A run that is going on."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.rounds: list[Round] = []
        # with those before a checkpoint, whose rows this process does not get
        self.moved_bytes = 0
        self.training_s = 0.0
        self._num_rounds = 0
        self._started = time.monotonic()

    def add(self, report: RoundReport) -> None:
        self.rounds.append(report.finished)
        self.moved_bytes = report.moved_bytes
        self.training_s = report.training_s
        self._num_rounds = report.num_rounds

    @property
    def label(self) -> str:
        return self.run.label

    @property
    def progress(self) -> str:
        return f"{self._last.round}/{self._num_rounds}"

    @property
    def loss(self) -> float | None:
        return self._last.loss

    @property
    def accuracy(self) -> float | None:
        return last_known(done.accuracy for done in self.rounds)

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._started

    @property
    def left_s(self) -> float | None:
        if not self.rounds:
            return None
        round_s = self.training_s / self._last.round
        return round_s * (self._num_rounds - self._last.round)

    @property
    def _last(self) -> Round:
        return self.rounds[-1]

    def line(self) -> str:
        if not self.rounds:
            return f"round 0/0, accuracy {NO_VALUE}, {megabytes(0)} MB"
        accuracy = NO_VALUE if self.accuracy is None else _percent(self.accuracy)
        moved = megabytes(self.moved_bytes)
        return f"round {self.progress}, accuracy {accuracy}, {moved} MB"


@dataclass(frozen=True)
class _LiveColumn(Column[_RunInHand]):
    """A column of the live table.

    Parameters
    ----------
    at_start : str, optional
        Its text before the first round; None where it has a value from the start.
    """

    at_start: str | None = None

    def text(self, row: _RunInHand) -> str:
        if not row.rounds and self.at_start is not None:
            return self.at_start
        return super().text(row)


def _ending(run: Run, outcome: Outcome, in_hand: _RunInHand) -> str:
    if outcome.state == "finished":
        return f"finished in {_clock(in_hand.elapsed_s)}, {in_hand.line()}"
    if outcome.state == "impossible":
        return outcome.summary
    return f"FAILED: {outcome.summary} (all output: runs/{run.id}/log.txt)"


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


_percent = "{:.1%}".format
_loss = "{:.4f}".format

_COLUMNS = [
    _LiveColumn("label", "run", justify="left"),
    _LiveColumn("progress", "round", at_start="starting"),
    _LiveColumn("loss", "loss", _loss, at_start=""),
    _LiveColumn("accuracy", "accuracy", _percent, at_start=""),
    _LiveColumn("moved_bytes", "MB", megabytes, at_start=""),
    _LiveColumn("elapsed_s", "elapsed", _clock),
    _LiveColumn("left_s", "left", _clock, at_start=""),
]
