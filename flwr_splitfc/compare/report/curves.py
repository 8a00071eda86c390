"""Accuracy over the rounds and bytes of a comparison's runs."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from statistics import mean, stdev

from flwr_splitfc.compare.report.numbers import points_of
from flwr_splitfc.compare.report.radio_link import RadioLink
from flwr_splitfc.compare.runs import Budget, Outcome, Run


@dataclass(frozen=True)
class Curve:
    """The accuracy of one method with one budget in the rounds that were evaluated.

    Each list has a value per evaluated round: the mean over seeds, and the sample
    standard deviation (0 for one seed). `megabytes` counts everything moved since the
    start, `link_s` the seconds that it took on the link; that is empty where they are
    not known.
    """

    method: str
    budget: Budget | None
    rounds: list[int]
    megabytes: list[float]
    link_s: list[float]
    accuracy: list[float]
    spread: list[float]


def curves_of(outcomes: Iterable[tuple[Run, Outcome]], link: RadioLink) -> list[Curve]:
    """A curve per method and budget, of the runs that are finished."""
    curves = []
    finished = [
        (run, points_of(outcome.results, link))
        for run, outcome in outcomes
        if outcome.results is not None
    ]
    for (method, budget), group in groupby(
        finished, key=lambda pair: (pair[0].method, pair[0].budget)
    ):
        seeds = [
            {point.round: point for point in points if point.accuracy is not None}
            for _, points in group
        ]
        rounds = sorted(set(seeds[0]).intersection(*seeds[1:]))
        if rounds:
            points = [[seed[number] for seed in seeds] for number in rounds]
            accuracies = [
                [100 * (point.accuracy or 0.0) for point in those] for those in points
            ]
            timed = all(point.link_s is not None for those in points for point in those)
            curves.append(
                Curve(
                    method,
                    budget,
                    rounds,
                    [
                        mean(point.moved_bytes for point in those) / 1e6
                        for those in points
                    ],
                    [mean(point.link_s or 0.0 for point in those) for those in points]
                    if timed
                    else [],
                    [mean(values) for values in accuracies],
                    [
                        stdev(values) if len(values) > 1 else 0.0
                        for values in accuracies
                    ],
                )
            )
    return curves
