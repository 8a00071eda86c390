"""The CSV file of a comparison: a line per run, finished or not."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter

from flwr_splitfc.compare.report.radio_link import RadioLink
from flwr_splitfc.compare.report.run_totals import RUN_COLUMNS, NumberColumn, RunTotals
from flwr_splitfc.compare.runs import Outcome, Outcomes, Run
from flwr_splitfc.run.columns import Column, shown_columns


@dataclass(frozen=True)
class RunLine:
    """A run, what has become of it, and what it came to if it is finished."""

    run: Run
    outcome: Outcome
    totals: RunTotals | None

    @classmethod
    def of(
        cls, run: Run, outcome: Outcome, link: RadioLink, target: float | None
    ) -> "RunLine":
        """Make the line of a run."""
        if outcome.results is None:
            return cls(run, outcome, None)
        return cls(run, outcome, RunTotals(outcome.results, link, target))


def _uplink_budget(line: RunLine) -> float | None:
    return None if line.run.budget is None else line.run.budget[0]


def _downlink_budget(line: RunLine) -> float | None:
    return None if line.run.budget is None else line.run.budget[1]


def _number(line: RunLine, column: NumberColumn) -> float | None:
    return None if line.totals is None else column.value(line.totals)


def _payload_digest(line: RunLine) -> str | None:
    return (line.outcome.results or {}).get("payload_digest")


def _any_finished(lines: Sequence[RunLine]) -> bool:
    return any(line.totals is not None for line in lines)


LINE_COLUMNS: list[Column[RunLine]] = [
    Column("method", "", of=attrgetter("run.method")),
    Column("uplink_budget", "", of=_uplink_budget),
    Column("downlink_budget", "", of=_downlink_budget),
    Column("seed", "", of=attrgetter("run.seed")),
    Column("state", "", of=attrgetter("outcome.state")),
    Column("reason", "", of=attrgetter("outcome.reason")),
    Column("run", "", of=attrgetter("run.id")),
    *(
        Column(number.key, "", of=partial(_number, column=number), shown=_any_finished)
        for number in RUN_COLUMNS
    ),
    Column("payload_digest", "", of=_payload_digest, shown=_any_finished),
]


def csv_text(outcomes: Outcomes, link: RadioLink, target: float | None = None) -> str:
    """Write a line per run; sizes are in bytes, and accuracies between 0 and 1."""
    lines = [RunLine.of(run, outcome, link, target) for run, outcome in outcomes]
    columns = shown_columns(LINE_COLUMNS, lines)
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow([column.key for column in columns])
    for line in lines:
        writer.writerow([column.value(line) for column in columns])
    return written.getvalue()
