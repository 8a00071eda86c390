"""Accuracy over the rounds and bytes of a comparison's runs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import mean, stdev
from typing import Any

from flwr_splitfc.report.runs import Budget, Outcome, Run


@dataclass(frozen=True)
class Curve:
    """The accuracy of one method with one budget in the rounds that were evaluated.

    Each list has a value per evaluated round: the mean over seeds, and the sample standard deviation (0 for
    one seed). `megabytes` counts everything moved since the start.
    """

    method: str
    budget: Budget | None
    rounds: list[int]
    megabytes: list[float]
    accuracy: list[float]
    spread: list[float]


def curves_of(outcomes: Iterable[tuple[Run, Outcome]]) -> list[Curve]:
    """A curve per method and budget, of the runs that are finished."""
    curves = []
    finished = [(run, outcome.results["rounds"]) for run, outcome in outcomes if outcome.results is not None]
    for (method, budget), group in groupby(finished, key=lambda pair: (pair[0].method, pair[0].budget)):
        seeds = [_evaluated(rows) for _, rows in group]
        rounds = sorted(set(seeds[0]).intersection(*seeds[1:]))
        if rounds:
            points = [[seed[number] for seed in seeds] for number in rounds]
            accuracies = [[100 * accuracy for _, accuracy in point] for point in points]
            curves.append(
                Curve(
                    method,
                    budget,
                    rounds,
                    [mean(megabytes for megabytes, _ in point) for point in points],
                    [mean(values) for values in accuracies],
                    [stdev(values) if len(values) > 1 else 0.0 for values in accuracies],
                )
            )
    return curves


def _evaluated(rows: Sequence[dict[str, Any]]) -> dict[int, tuple[float, float]]:
    """Megabytes so far and accuracy, by round."""
    points, megabytes = {}, 0.0
    for row in rows:
        megabytes += (row["uplink_bytes"] + row["downlink_bytes"]) / 1e6
        if row["accuracy"] is not None:
            points[row["round"]] = (megabytes, row["accuracy"])
    return points
