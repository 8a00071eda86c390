"""The tables of a comparison as Markdown, and the legend of their columns."""

from collections.abc import Sequence

from flwr_splitfc.compare.report.radio_link import RadioLink
from flwr_splitfc.compare.report.rows import (
    KIND_COLUMNS,
    SUMMARY_COLUMNS,
    MeanColumn,
    MethodRow,
)
from flwr_splitfc.compare.report.run_totals import LEAKED_COLUMNS
from flwr_splitfc.run.columns import Column, known, shown_columns

_ABOUT_ACCURACY = (
    "Accuracy is the last one that was measured: mean over the seeds, "
    "± sample standard deviation"
)
_ABOUT_METRIC = (
    "`metric` is the last {names}, as the key `best-metric` says: mean over the seeds."
)
_ABOUT_BYTES = (
    "MB are all bytes that were moved, in 1e6 bytes. Bits per entry and `cut` are of "
    "the features and gradients of training, `total` is of everything; `times fewer` "
    "is against the same run with float32 at the cut."
)
_ABOUT_LINK = (
    "`link` is the simulated time on {link} (Mbit/s, ms), without computing: "
    "of a round, its slowest device's."
)
_ABOUT_TARGET = (
    "`to target` is until an evaluation first gave {percent:g} %, in all seeds."
)
_ABOUT_LEAKAGE = (
    "`leaked` is how close the best of ridge regression, a network that has trained "
    "for {steps} steps and inversion of the device half comes to devices' inputs by "
    "their features; without features it would be {trivial}."
)


def markdown(rows: Sequence[MethodRow], found: str, legend: str) -> str:
    """Write what was found, and both tables with the legend and notes between."""
    parts = [
        found,
        _table(rows, shown_columns(SUMMARY_COLUMNS, rows)),
        legend,
        _notes(rows),
        "MB by kind:",
        _table(rows, shown_columns(KIND_COLUMNS, rows)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _notes(rows: Sequence[MethodRow]) -> str:
    # A row without any result shows its note in the table.
    partial = [row for row in rows if row.note and row.seeds]
    return "\n".join(f"- {row.label}: {row.note}" for row in partial)


def _table(rows: Sequence[MethodRow], columns: Sequence[Column[MethodRow]]) -> str:
    lines = [
        [column.heading for column in columns],
        ["---" if column.justify == "left" else "---:" for column in columns],
    ]
    for row in rows:
        lines.append([_escaped(column.text(row)) for column in columns])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def legend(rows: Sequence[MethodRow], link: RadioLink, target: float | None) -> str:
    """Explain the columns."""
    sentences = [_about_accuracy(rows), *_about_metric(rows), _ABOUT_BYTES]
    sentences.append(_ABOUT_LINK.format(link=link))
    if target:
        sentences.append(_ABOUT_TARGET.format(percent=100 * target))
    sentences += _about_leakage(rows)
    return " ".join(sentences)


def _about_leakage(rows: Sequence[MethodRow]) -> list[str]:
    """Explain the attacks by the first; all have nearly the same trivial score."""
    attacks = known(totals.leakage for row in rows for totals in row.totals)
    if not attacks:
        return []
    trivial = []
    for number in LEAKED_COLUMNS:
        score = attacks[0]["trivial"][number.key]
        if score is not None:
            trivial.append(f"{number.format(score)} ({number.heading})")
    texts = " and ".join(trivial)
    return [_ABOUT_LEAKAGE.format(steps=attacks[0]["steps"], trivial=texts)]


def _about_accuracy(rows: Sequence[MethodRow]) -> str:
    clauses = [_ABOUT_ACCURACY]
    for column in shown_columns(SUMMARY_COLUMNS, rows):
        if isinstance(column, MeanColumn) and column.number.about:
            clauses.append(column.number.about)
    clauses.append("the other columns are means")
    return "; ".join(clauses) + "."


def _about_metric(rows: Sequence[MethodRow]) -> list[str]:
    """Name the metrics of the runs, where they have one."""
    runs = [totals for row in rows for totals in row.totals]
    metrics = known(totals.best_metric for totals in runs if totals.metric is not None)
    names = " or ".join(dict.fromkeys(metric.name for metric in metrics))
    return [_ABOUT_METRIC.format(names=names)] if names else []
