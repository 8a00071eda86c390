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
from flwr_splitfc.run.columns import known

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
        How long that took on the link; mean over seeds.
    accuracy : list of float
        In percent; mean over seeds.
    spread : list of float
        The sample standard deviation of the accuracy; 0 for one seed.
    devices : int
        How many train in a round, at most.
    """

    method: str
    budget: Budget | None
    rounds: list[int]
    megabytes: list[float]
    link_s: list[float]
    accuracy: list[float]
    spread: list[float]
    devices: int


def curves_of(outcomes: Outcomes, link: RadioLink) -> list[Curve]:
    """Return a curve per method and budget, of the runs that are finished."""
    curves = []
    for (method, budget), group in groupby(outcomes, key=method_and_budget):
        finished = known(outcome.results for _, outcome in group)
        runs = [_evaluations_of(results, link) for results in finished]
        rounds = _common_rounds(runs)
        if rounds:
            devices = max(_devices_in_a_round(results) for results in finished)
            curves.append(_curve_of(method, budget, rounds, runs, devices))
    return curves


def _devices_in_a_round(results: Mapping[str, Any]) -> int:
    """Return how many devices trained in a round at most."""
    rounds = rounds_of(results)
    return max((len(done.links["train"]) for done in rounds), default=0)


def _evaluations_of(results: Mapping[str, Any], link: RadioLink) -> _Evaluations:
    points = points_of(rounds_of(results), link)
    return {point.round: point for point in points if point.accuracy is not None}


def _common_rounds(runs: Sequence[_Evaluations]) -> list[int]:
    if not runs:
        return []
    first, *others = runs
    return sorted(set(first).intersection(*others))


def _curve_of(
    method: str,
    budget: Budget | None,
    rounds: list[int],
    runs: Sequence[_Evaluations],
    devices: int,
) -> Curve:
    """Make a curve of the runs with different seeds."""
    marks = [_mark([evaluations[number] for evaluations in runs]) for number in rounds]
    return Curve(
        method=method,
        budget=budget,
        rounds=rounds,
        megabytes=[mark.megabytes for mark in marks],
        link_s=[mark.link_s for mark in marks],
        accuracy=[mark.accuracy for mark in marks],
        spread=[mark.spread for mark in marks],
        devices=devices,
    )


@dataclass(frozen=True)
class _Mark:
    """A curve at one of its rounds; the values are those of `Curve`."""

    megabytes: float
    link_s: float
    accuracy: float
    spread: float


def _mark(points: Sequence[Point]) -> _Mark:
    """Take the means of one round over the seeds."""
    percents = [100 * (point.accuracy or 0.0) for point in points]
    return _Mark(
        megabytes=mean(point.moved_bytes for point in points) / 1e6,
        link_s=mean(point.link_s for point in points),
        accuracy=mean(percents),
        spread=stdev(percents) if len(percents) > 1 else 0.0,
    )
