"""A comparison in numbers: a line per run, and a row per method and budget."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import mean, stdev
from typing import Any

from flwr_splitfc.exchange.ledger import DOWNLINK_KINDS, UPLINK_KINDS
from flwr_splitfc.report.app import SettingsError
from flwr_splitfc.report.runs import Budget, Outcome, Run, budget_text

Numbers = dict[str, float | None]

_FLOAT32_BYTES = 4
_KINDS = [("uplink", kind) for kind in UPLINK_KINDS] + [("downlink", kind) for kind in DOWNLINK_KINDS]


@dataclass(frozen=True)
class RadioLink:
    """A link between devices and server: Mbit/s up and down, and the round trip in milliseconds."""

    uplink_mbit_s: float = 10.0
    downlink_mbit_s: float = 50.0
    round_trip_ms: float = 40.0

    @classmethod
    def parse(cls, text: str) -> "RadioLink":
        """From ``UP/DOWN/ROUND_TRIP``."""
        try:
            up, down, round_trip = map(float, text.split("/"))
        except ValueError as error:
            raise SettingsError(f"a link is UP/DOWN/ROUND_TRIP in Mbit/s and ms, got {text!r}") from error
        if not (up > 0 and down > 0 and round_trip >= 0):
            raise SettingsError(f"a link has rates above 0, got {text!r}")
        return cls(up, down, round_trip)

    def seconds(self, uplink_bytes: float, downlink_bytes: float, round_trips: float) -> float:
        """How long the traffic takes, one thing after another.

        >>> RadioLink(10, 50, 40).seconds(1_250_000, 6_250_000, 100)
        6.0
        """
        bits_s = 8 * uplink_bytes / (self.uplink_mbit_s * 1e6) + 8 * downlink_bytes / (self.downlink_mbit_s * 1e6)
        return bits_s + round_trips * self.round_trip_ms / 1e3

    def __str__(self) -> str:
        return f"{self.uplink_mbit_s:g} Mbit/s up, {self.downlink_mbit_s:g} down, {self.round_trip_ms:g} ms"


def numbers_of(results: Mapping[str, Any], link: RadioLink) -> Numbers:
    """What a run's ``results.json`` comes to.

    ``cut_ratio`` and ``total_ratio`` say how many times fewer bytes were moved than by the same run with
    float32 at the cut; None where nothing is split. ``link_s`` counts a round trip for each mini-batch at
    the cut and for each turn of a device.
    """
    train, evaluate = results["traffic"]["train"], results["traffic"]["evaluate"]
    kinds = {
        f"{way}_{kind}_bytes": train[f"{way}_bytes"].get(kind, 0) + evaluate[f"{way}_bytes"].get(kind, 0)
        for way, kind in _KINDS
    }
    up, down = (sum(kinds[f"{way}_{kind}_bytes"] for of, kind in _KINDS if of == way) for way in ("uplink", "downlink"))
    features, gradient = train["uplink_bytes"].get("features", 0), train["downlink_bytes"].get("gradient", 0)
    cut, float32_cut = features + gradient, 2 * _FLOAT32_BYTES * train["entries"]
    sessions = train["sessions"] + evaluate["sessions"]
    turns = sessions or results.get("run", {}).get("turns", 0)
    steps_at_cut = train["steps"] + evaluate["steps"] if sessions else 0
    accuracies = [row["accuracy"] for row in results["rounds"] if row["accuracy"] is not None]
    return {
        "accuracy": accuracies[-1] if accuracies else None,
        "rounds": len(results["rounds"]),
        "steps": train["steps"],
        "turns": turns,
        "uplink_bits_per_entry": 8 * features / train["entries"] if train["entries"] else None,
        "downlink_bits_per_entry": 8 * gradient / train["entries"] if train["entries"] else None,
        "cut_ratio": float32_cut / cut if cut else None,
        "total_ratio": (up + down - cut + float32_cut) / (up + down) if cut else None,
        "uplink_bytes": up,
        "downlink_bytes": down,
        **kinds,
        "seconds": sum(row["seconds"] for row in results["rounds"]),
        "link_s": link.seconds(up, down, turns + steps_at_cut),
    }


@dataclass(frozen=True)
class Row:
    """The runs of one method with one budget: means over their seeds.

    `spread` is the sample standard deviation of the accuracy, None for one seed.
    """

    method: str
    budget: Budget | None
    seeds: int
    numbers: Numbers
    spread: float | None
    note: str

    @property
    def label(self) -> str:
        """Method and budget."""
        return f"{self.method} {budget_text(self.budget)}".strip()


def rows_of(outcomes: Sequence[tuple[Run, Outcome]], link: RadioLink) -> list[Row]:
    """A row per method and budget, in the runs' order."""
    return [
        _row(method, budget, list(group), link)
        for (method, budget), group in groupby(outcomes, key=lambda pair: (pair[0].method, pair[0].budget))
    ]


def _row(method: str, budget: Budget | None, group: list[tuple[Run, Outcome]], link: RadioLink) -> Row:
    runs = [numbers_of(outcome.results, link) for _, outcome in group if outcome.results is not None]
    means: Numbers = {}
    for key in runs[0] if runs else ():
        known = [value for run in runs if (value := run[key]) is not None]
        means[key] = mean(known) if known else None
    accuracies = [accuracy for run in runs if (accuracy := run["accuracy"]) is not None]
    spread = stdev(accuracies) if len(accuracies) > 1 else None
    return Row(method, budget, len(runs), means, spread, _note([outcome for _, outcome in group]))


def _note(outcomes: Iterable[Outcome]) -> str:
    """Why results are missing, each reason once."""
    reasons: dict[str, int] = {}
    for outcome in outcomes:
        if outcome.state != "finished":
            text = {"failed": f"failed: {outcome.summary}", "to do": "not run yet"}.get(outcome.state, outcome.summary)
            reasons[text] = reasons.get(text, 0) + 1
    return "; ".join(text if count == 1 else f"{text} ({count} runs)" for text, count in reasons.items())


SUMMARY = {
    "method": "method",
    "budget": "budget up/down, bits",
    "accuracy": "accuracy, %",
    "seeds": "seeds",
    "uplink_bits_per_entry": "bits/entry up",
    "downlink_bits_per_entry": "bits/entry down",
    "cut_ratio": "cut, times fewer",
    "total_ratio": "total, times fewer",
    "uplink_bytes": "MB up",
    "downlink_bytes": "MB down",
    "seconds": "run, s",
    "link_s": "link, s",
}
KINDS = {
    "method": "method",
    "budget": "budget up/down, bits",
    **{f"{way}_{kind}_bytes": f"{kind} {way.removesuffix('link')}" for way, kind in _KINDS},
}
"""Columns of the two tables: what they show, and their headings."""

_FORMATS = {"bits_per_entry": ".4f", "ratio": ".1f", "bytes": ".2f", "seconds": ".0f", "link_s": ".0f"}


def cell(row: Row, column: str) -> str:
    """What a table shows: bytes in MB (1e6), accuracy in percent with its spread."""
    if column in ("method", "seeds"):
        return str(getattr(row, column))
    if column == "budget":
        return budget_text(row.budget) or "-"
    value = row.numbers.get(column)
    if column == "accuracy":
        spread = "" if row.spread is None else f" ± {100 * row.spread:.1f}"
        return row.note if not row.seeds else "-" if value is None else f"{100 * value:.1f}{spread}"
    if value is None:
        return "-"
    spec = next(spec for ending, spec in _FORMATS.items() if column.endswith(ending))
    return format(value / 1e6 if column.endswith("bytes") else value, spec)


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


def legend(link: RadioLink) -> str:
    """What the columns mean."""
    return (
        "Accuracy is the last one that was measured: mean over the seeds, ± sample standard deviation; the other "
        "columns are means. MB are all bytes that were moved, in 1e6 bytes. Bits per entry and `cut` are of the "
        "features and gradients of training, `total` is of everything; `times fewer` is against the same run with "
        f"float32 at the cut. `link` is the time that all of it takes one after another at {link}, with a round trip "
        "for each mini-batch at the cut and each turn of a device."
    )


def markdown(rows: Sequence[Row], link: RadioLink) -> str:
    """Both tables, and what they mean."""
    notes = [f"- {row.label}: {row.note}" for row in rows if row.note and row.seeds]
    parts = [
        _markdown_table(rows, SUMMARY),
        legend(link),
        "\n".join(notes),
        "MB by kind:",
        _markdown_table(rows, KINDS),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown_table(rows: Sequence[Row], columns: Mapping[str, str]) -> str:
    shown = [[cell(row, column).replace("|", "\\|").replace("\n", " ") for column in columns] for row in rows]
    rule = ["---" if column == "method" else "---:" for column in columns]
    return "\n".join(f"| {' | '.join(line)} |" for line in [list(columns.values()), rule, *shown])


def csv_text(outcomes: Sequence[tuple[Run, Outcome]], link: RadioLink) -> str:
    """A line per run, finished or not; bytes in bytes."""
    lines = []
    for run, outcome in outcomes:
        budget = run.budget or (None, None)
        line = {"method": run.method, "uplink_budget": budget[0], "downlink_budget": budget[1], "seed": run.seed}
        line |= {"state": outcome.state, "reason": outcome.reason, "run": run.id}
        if outcome.results is not None:
            line |= numbers_of(outcome.results, link) | {"payload_digest": outcome.results.get("payload_digest")}
        lines.append(line)
    buffer = io.StringIO()
    columns = dict.fromkeys(column for line in lines for column in line)
    writer = csv.DictWriter(buffer, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()
