"""The rows of a comparison's tables, one per method and budget, and their columns."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import mean, stdev

from flwr_splitfc.compare.report.radio_link import RadioLink
from flwr_splitfc.compare.report.run_totals import (
    RUN_COLUMNS,
    NumberColumn,
    Part,
    RunTotals,
)
from flwr_splitfc.compare.runs import (
    Budget,
    Outcome,
    Outcomes,
    Run,
    budget_text,
    method_label,
)
from flwr_splitfc.run.columns import Column, known


@dataclass(frozen=True)
class MethodRow:
    """The runs of one method with one budget.

    Parameters
    ----------
    method : str
    budget : (float, float), optional
    totals : tuple of RunTotals
        What its finished runs came to, one for each seed.
    note : str
        Why runs have no results; empty if all have.
    """

    method: str
    budget: Budget | None
    totals: tuple[RunTotals, ...]
    note: str

    @property
    def seeds(self) -> int:
        """How many runs are finished."""
        return len(self.totals)

    @property
    def label(self) -> str:
        """Method and budget."""
        return method_label(self.method, self.budget)

    def mean(self, number: NumberColumn) -> float | None:
        """Return the mean over the seeds, None where not all have the number."""
        values = self._values(number)
        return mean(values) if values and len(values) == self.seeds else None

    def spread(self, number: NumberColumn) -> float | None:
        """Return the sample standard deviation, None for fewer than two numbers."""
        values = self._values(number)
        return stdev(values) if len(values) > 1 else None

    def _values(self, number: NumberColumn) -> list[float]:
        return known(number.value(totals) for totals in self.totals)


def rows_of(
    outcomes: Outcomes, link: RadioLink, target: float | None = None
) -> list[MethodRow]:
    """Return a row per method and budget, in the runs' order."""
    rows = []
    for _, group in groupby(outcomes, key=method_and_budget):
        rows.append(_row_of(list(group), link, target))
    return rows


def method_and_budget(pair: tuple[Run, Outcome]) -> tuple[str, Budget | None]:
    """Return what the runs of one row, or of one curve, have in common."""
    run, _ = pair
    return run.method, run.budget


def _row_of(group: Outcomes, link: RadioLink, target: float | None) -> MethodRow:
    method, budget = method_and_budget(group[0])
    outcomes = [outcome for _, outcome in group]
    finished = known(outcome.results for outcome in outcomes)
    totals = tuple(RunTotals(results, link, target) for results in finished)
    return MethodRow(method, budget, totals, _note(outcomes))


def _note(outcomes: Sequence[Outcome]) -> str:
    """Say why results are missing, each reason once."""
    count_of: dict[str, int] = {}
    for outcome in outcomes:
        if outcome.state != "finished":
            reason = _reason(outcome)
            count_of[reason] = count_of.get(reason, 0) + 1
    reasons = []
    for reason, count in count_of.items():
        reasons.append(reason if count == 1 else f"{reason} ({count} runs)")
    return "; ".join(reasons)


def _reason(outcome: Outcome) -> str:
    if outcome.state == "failed":
        return f"failed: {outcome.summary}"
    if outcome.state == "to do":
        return "not run yet"
    return outcome.summary


@dataclass(frozen=True, kw_only=True)
class MeanColumn(Column[MethodRow]):
    """A column with the means of a number, and their spread where that is wanted.

    Parameters
    ----------
    number : NumberColumn
    """

    number: NumberColumn

    @classmethod
    def of_number(cls, number: NumberColumn) -> "MeanColumn":
        """Make the column that shows a number of the runs."""

        def mean_of(row: MethodRow) -> float | None:
            return row.mean(number)

        def shown(rows: Sequence[MethodRow]) -> bool:
            means = known(row.mean(number) for row in rows)
            if number.part == "kinds":
                return any(means)  # no run moved a byte of the others
            return bool(means) or not number.only_if_known

        return cls(
            number.key,
            number.heading,
            number.format,
            of=mean_of,
            shown=shown,
            number=number,
        )

    def text(self, row: MethodRow) -> str:
        """Return the mean and its spread; without results the note has their place."""
        if shows_note(row, self):
            return row.note
        text = super().text(row)
        spread = row.spread(self.number) if self.number.spread else None
        if self.value(row) is None or spread is None:
            return text
        return f"{text} ± {self.format(spread)}"


def shows_note(row: MethodRow, column: Column[MethodRow]) -> bool:
    """Return whether a cell says why there are no results."""
    return column.key == "accuracy" and row.seeds == 0


def sort_value(row: MethodRow, column: Column[MethodRow]) -> float | str:
    """Return what a column is sorted by: its value, below all where there is none."""
    value = column.value(row)
    if value is None:
        return -sys.float_info.max
    if column is BUDGET:
        uplink_bits, _ = value
        return float(uplink_bits)
    sortable: float | str = value
    return sortable


def _means(part: Part) -> list[MeanColumn]:
    return [
        MeanColumn.of_number(number) for number in RUN_COLUMNS if number.part == part
    ]


def _any_budget(rows: Sequence[MethodRow]) -> bool:
    return any(row.budget is not None for row in rows)


METHOD: Column[MethodRow] = Column("method", "method", justify="left")
BUDGET: Column[MethodRow] = Column(
    "budget", "budget up/down, bits", budget_text, shown=_any_budget
)
SEEDS: Column[MethodRow] = Column("seeds", "seeds")

SUMMARY_COLUMNS: list[Column[MethodRow]] = [
    METHOD,
    BUDGET,
    *_means("accuracy"),
    SEEDS,
    *_means("costs"),
]
"""The columns of the first table."""

KIND_COLUMNS: list[Column[MethodRow]] = [METHOD, BUDGET, *_means("kinds")]
"""The columns of the second table: all bytes by kind."""
