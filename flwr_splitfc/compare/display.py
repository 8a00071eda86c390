"""What a comparison shows while it runs."""

import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from flwr_splitfc.compare.runs import Outcome, Run
from flwr_splitfc.compare.workers.pool import Event


class Display:
    """One live table of the runs that are going on, over plain lines of what has happened.

    Where the output is no terminal there are only the lines.

    Parameters
    ----------
    total : int
        Runs of the comparison.
    finished_s : dict
        Of the runs that were finished before, by run id, how long they took.
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
        self._total, self._jobs = total, jobs
        self._took_s = dict(finished_s)
        self._settled = len(finished_s)
        self._running: dict[str, _Running] = {}
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
        run_id = event.run.id
        if event.kind == "start":
            self._running[run_id] = _Running(event.run)
            self._say(event.run, "started")
        elif event.kind == "round":
            self._running[run_id].add(event.row, event.num_rounds)
            if event.row["accuracy"] is not None and not self.console.is_terminal:
                self._say(event.run, self._running[run_id].line())
        else:
            running = self._running.pop(run_id)
            self._settled += 1
            self._took_s[run_id] = running.training_s
            self._say(event.run, _outcome_text(event.outcome, running))

    def _say(self, run: Run, what: str) -> None:
        self.console.print(
            f"[{self._settled}/{self._total}] {run.label}: {what}", markup=False
        )

    def table(self) -> Table:
        """The runs that are going on."""
        table = Table(
            title=self._title(), title_justify="left", box=None, padding=(0, 2, 0, 0)
        )
        for column in ("run", "round", "loss", "accuracy", "MB", "elapsed", "left"):
            table.add_column(
                column, justify="left" if column == "run" else "right", no_wrap=True
            )
        for running in list(self._running.values()):
            table.add_row(*running.cells())
        return table

    def _title(self) -> str:
        title = f"{self._settled} of {self._total} runs"
        left_s = self._left_s()
        return title if left_s is None else f"{title}, about {_clock(left_s)} to go"

    def _left_s(self) -> float | None:
        """Runs not yet begun take as long as others did, or will, on average."""
        going = [
            running.total_s
            for running in self._running.values()
            if running.total_s is not None
        ]
        known = [*self._took_s.values(), *going]
        if not known:
            return None
        waiting = self._total - self._settled - len(self._running)
        left = sum(running.left_s or 0.0 for running in self._running.values())
        return (left + waiting * sum(known) / len(known)) / self._jobs


class _Running:
    """A run that is going on."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._started = time.monotonic()
        self._seen = self._round = self._num_rounds = 0
        self.training_s = 0.0
        self._loss: float | None = None
        self._accuracy: float | None = None
        self._megabytes = 0.0

    def add(self, row: Mapping[str, Any], num_rounds: int) -> None:
        self._seen += 1
        self.training_s += row["seconds"]
        self._round, self._num_rounds, self._loss = (
            row["round"],
            num_rounds,
            row["loss"],
        )
        self._accuracy = self._accuracy if row["accuracy"] is None else row["accuracy"]
        self._megabytes += (row["uplink_bytes"] + row["downlink_bytes"]) / 1e6

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._started

    @property
    def left_s(self) -> float | None:
        return (
            self.training_s / self._seen * (self._num_rounds - self._round)
            if self._seen
            else None
        )

    @property
    def total_s(self) -> float | None:
        return None if self.left_s is None else self.training_s + self.left_s

    def line(self) -> str:
        accuracy = "-" if self._accuracy is None else f"{self._accuracy:.1%}"
        return f"round {self._round}/{self._num_rounds}, accuracy {accuracy}, {self._megabytes:.2f} MB"

    def cells(self) -> list[str]:
        if not self._seen:
            return [self.run.label, "starting", "", "", "", _clock(self.elapsed_s), ""]
        return [
            self.run.label,
            f"{self._round}/{self._num_rounds}",
            "-" if self._loss is None else f"{self._loss:.4f}",
            "-" if self._accuracy is None else f"{self._accuracy:.1%}",
            f"{self._megabytes:.2f}",
            _clock(self.elapsed_s),
            "-" if self.left_s is None else _clock(self.left_s),
        ]


def _outcome_text(outcome: Outcome, running: _Running) -> str:
    if outcome.state == "finished":
        return f"finished in {_clock(running.elapsed_s)}, {running.line()}"
    return (
        outcome.summary
        if outcome.state == "impossible"
        else f"FAILED: {outcome.summary}"
    )


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
