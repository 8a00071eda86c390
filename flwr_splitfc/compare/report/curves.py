"""Accuracy over the rounds, bytes and seconds of a comparison's runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import mean, stdev
from typing import Any, TypeAlias

from flwr_splitfc.compare.report.points import Point, points_of, rounds_of
from flwr_splitfc.compare.report.radio_link import RadioLink
from flwr_splitfc.compare.report.rows import method_and_budget
from flwr_splitfc.compare.runs import Budget, Outcomes

_Evaluations: TypeAlias = dict[int, Point]
"""The rounds of one run that were evaluated."""


@dataclass(frozen=True)
class Curve:
    """The accuracy of one method with one budget in the rounds that were evaluated.

    Each list has a value per round that was evaluated with all seeds.

    Parameters
    ----------
    method : str
    budget : (float, float), optional
    rounds : list of int
    megabytes : list of float
        Everything moved since the start; mean over seeds.
    link_s : list of float
        How long that took on the link; mean over seeds. Empty where it is not known.
    accuracy : list of float
        In percent; mean over seeds.
    spread : list of float
        The sample standard deviation of the accuracy; 0 for one seed.
    """

    method: str
    budget: Budget | None
    rounds: list[int]
    megabytes: list[float]
    link_s: list[float]
    accuracy: list[float]
    spread: list[float]


def curves_of(outcomes: Outcomes, link: RadioLink) -> list[Curve]:
    """Return a curve per method and budget, of the runs that are finished."""
    curves = []
    for (method, budget), group in groupby(outcomes, key=method_and_budget):
        runs = [
            _evaluations_of(outcome.results, link)
            for _, outcome in group
            if outcome.results is not None
        ]
        if runs:
            curves.append(_curve_of(method, budget, runs))
    return [curve for curve in curves if curve.rounds]


def _evaluations_of(results: Mapping[str, Any], link: RadioLink) -> _Evaluations:
    points = points_of(rounds_of(results), link)
    return {point.round: point for point in points if point.accuracy is not None}


def _curve_of(
    method: str, budget: Budget | None, runs: Sequence[_Evaluations]
) -> Curve:
    """Make a curve of the runs with different seeds."""
    common = set(runs[0]).intersection(*runs[1:])
    curve = Curve(method, budget, sorted(common), [], [], [], [])
    for number in curve.rounds:
        points = [evaluations[number] for evaluations in runs]
        percents = [100 * (point.accuracy or 0.0) for point in points]
        curve.accuracy.append(mean(percents))
        curve.spread.append(stdev(percents) if len(percents) > 1 else 0.0)
        curve.megabytes.append(mean(point.moved_bytes for point in points) / 1e6)
        times_s = [point.link_s for point in points if point.link_s is not None]
        # A run knows its times in all rounds or in none.
        if len(times_s) == len(points):
            curve.link_s.append(mean(times_s))
    return curve
