"""A comparison in numbers: a line per run, and a row per method and budget."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import mean, stdev

from flwr_splitfc.compare.report.numbers import WAYS_AND_KINDS, Numbers, numbers_of
from flwr_splitfc.compare.report.radio_link import RadioLink
from flwr_splitfc.compare.runs import Budget, Outcome, Run, budget_text


@dataclass(frozen=True)
class Row:
    """The runs of one method with one budget: means over their seeds, None where not all of them have a number.

    `spreads` has the sample standard deviations of the accuracies, nothing for one
    seed.
    """

    method: str
    budget: Budget | None
    seeds: int
    numbers: Numbers
    spreads: Mapping[str, float]
    note: str

    @property
    def label(self) -> str:
        """Method and budget."""
        return f"{self.method} {budget_text(self.budget)}".strip()


def rows_of(
    outcomes: Sequence[tuple[Run, Outcome]],
    link: RadioLink,
    target: float | None = None,
) -> list[Row]:
    """A row per method and budget, in the runs' order."""
    return [
        _row(method, budget, list(group), link, target)
        for (method, budget), group in groupby(
            outcomes, key=lambda pair: (pair[0].method, pair[0].budget)
        )
    ]


def _row(
    method: str,
    budget: Budget | None,
    group: list[tuple[Run, Outcome]],
    link: RadioLink,
    target: float | None,
) -> Row:
    runs = [
        numbers_of(outcome.results, link, target)
        for _, outcome in group
        if outcome.results is not None
    ]
    means: Numbers = {}
    for key in runs[0] if runs else ():
        known = [value for run in runs if (value := run[key]) is not None]
        means[key] = mean(known) if len(known) == len(runs) else None
    spreads = {}
    for key in _ACCURACIES:
        known = [value for run in runs if (value := run[key]) is not None]
        if len(known) > 1:
            spreads[key] = stdev(known)
    return Row(
        method,
        budget,
        len(runs),
        means,
        spreads,
        _note([outcome for _, outcome in group]),
    )


def _note(outcomes: Iterable[Outcome]) -> str:
    """Why results are missing, each reason once."""
    reasons: dict[str, int] = {}
    for outcome in outcomes:
        if outcome.state != "finished":
            text = {"failed": f"failed: {outcome.summary}", "to do": "not run yet"}.get(
                outcome.state, outcome.summary
            )
            reasons[text] = reasons.get(text, 0) + 1
    return "; ".join(
        text if count == 1 else f"{text} ({count} runs)"
        for text, count in reasons.items()
    )


SUMMARY = {
    "method": "method",
    "budget": "budget up/down, bits",
    "accuracy": "accuracy, %",
    "device_accuracy": "on devices, %",
    "seeds": "seeds",
    "uplink_bits_per_entry": "bits/entry up",
    "downlink_bits_per_entry": "bits/entry down",
    "cut_ratio": "cut, times fewer",
    "total_ratio": "total, times fewer",
    "uplink_bytes": "MB up",
    "downlink_bytes": "MB down",
    "seconds": "run, s",
    "link_s": "link, s",
    "target_bytes": "MB to target",
    "target_link_s": "link s to target",
}
KINDS = {
    "method": "method",
    "budget": "budget up/down, bits",
    **{
        f"{way}_{kind}_bytes": f"{kind} {way.removesuffix('link')}"
        for way, kind in WAYS_AND_KINDS
    },
}
"""Columns of the two tables: what they show, and their headings."""

_ACCURACIES = ("accuracy", "device_accuracy")
_FORMATS = {
    "bits_per_entry": ".4f",
    "ratio": ".1f",
    "bytes": ".2f",
    "seconds": ".0f",
    "link_s": ".0f",
}


def cell(row: Row, column: str) -> str:
    """What a table shows: bytes in MB (1e6), accuracy in percent with its spread."""
    if column in ("method", "seeds"):
        return str(getattr(row, column))
    if column == "budget":
        return budget_text(row.budget) or "-"
    value = row.numbers.get(column)
    if column == "accuracy" and not row.seeds:
        return row.note
    if value is None:
        return "-"
    if column in _ACCURACIES:
        spread = f" ± {100 * row.spreads[column]:.1f}" if column in row.spreads else ""
        return f"{100 * value:.1f}{spread}"
    spec = next(spec for ending, spec in _FORMATS.items() if column.endswith(ending))
    return format(value / 1e6 if column.endswith("bytes") else value, spec)


def summary_columns(rows: Sequence[Row]) -> dict[str, str]:
    """Those of `SUMMARY` that say something: where no device evaluated beside the server, there is no column for it."""
    on_devices = any(row.numbers.get("device_accuracy") is not None for row in rows)
    return {
        column: heading
        for column, heading in SUMMARY.items()
        if on_devices or column != "device_accuracy"
    }


def sort_key(row: Row, column: str) -> float | str:
    """What a column is sorted by."""
    if column == "method":
        return row.method
    if column == "budget":
        return row.budget[0] if row.budget else -1.0
    if column == "seeds":
        return row.seeds
    value = row.numbers.get(column)
    return -1.0 if value is None else value


def legend(rows: Sequence[Row], link: RadioLink, target: float | None) -> str:
    """What the columns mean."""
    on_devices = "device_accuracy" in summary_columns(rows)
    untimed = any(row.seeds and row.numbers["link_s"] is None for row in rows)
    return (
        "Accuracy is the last one that was measured: mean over the seeds, ± sample standard deviation; "
        + "`on devices` is what devices found with features coded as for inference; "
        * on_devices
        + "the other "
        "columns are means. MB are all bytes that were moved, in 1e6 bytes. Bits per entry and `cut` are of the "
        "features and gradients of training, `total` is of everything; `times fewer` is against the same run with "
        f"float32 at the cut. `link` is the simulated time on {link} (Mbit/s, ms), without computing: of a round, its "
        "slowest device's. "
        + (
            f"`to target` is until an evaluation first gave {100 * target:g} %, in all seeds. "
            if target
            else ""
        )
        + (
            "Runs of earlier versions have no link times; without their folders in runs/ they are made anew."
            * untimed
        )
    ).strip()


def markdown(rows: Sequence[Row], legend: str) -> str:
    """Both tables, and what they mean."""
    notes = [f"- {row.label}: {row.note}" for row in rows if row.note and row.seeds]
    parts = [
        _markdown_table(rows, summary_columns(rows)),
        legend,
        "\n".join(notes),
        "MB by kind:",
        _markdown_table(rows, KINDS),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown_table(rows: Sequence[Row], columns: Mapping[str, str]) -> str:
    shown = [
        [cell(row, column).replace("|", "\\|").replace("\n", " ") for column in columns]
        for row in rows
    ]
    rule = ["---" if column == "method" else "---:" for column in columns]
    return "\n".join(
        f"| {' | '.join(line)} |" for line in [list(columns.values()), rule, *shown]
    )


def csv_text(
    outcomes: Sequence[tuple[Run, Outcome]],
    link: RadioLink,
    target: float | None = None,
) -> str:
    """A line per run, finished or not; bytes in bytes."""
    lines = []
    for run, outcome in outcomes:
        budget = run.budget or (None, None)
        line = {
            "method": run.method,
            "uplink_budget": budget[0],
            "downlink_budget": budget[1],
            "seed": run.seed,
        }
        line |= {"state": outcome.state, "reason": outcome.reason, "run": run.id}
        if outcome.results is not None:
            line |= numbers_of(outcome.results, link, target) | {
                "payload_digest": outcome.results.get("payload_digest")
            }
        lines.append(line)
    buffer = io.StringIO()
    columns = dict.fromkeys(column for line in lines for column in line)
    writer = csv.DictWriter(buffer, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()
