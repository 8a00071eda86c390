"""A run after each of its rounds: its accuracy, its bytes, its time on a link."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import floor
from typing import Any

from flwr_splitfc.compare.report.radio_link import RadioLink
from flwr_splitfc.run.columns import known
from flwr_splitfc.run.rounds import Round, standings


@dataclass(frozen=True)
class Point:
    """A run as it stands after a round.

    Parameters
    ----------
    round : int
    moved_bytes : int
        All bytes so far.
    link_s : float
        How long they took on the link.
    accuracy : float or None
        None in a round without evaluation.
    """

    round: int
    moved_bytes: int
    link_s: float
    accuracy: float | None


def rounds_of(results: Mapping[str, Any]) -> list[Round]:
    """Read the rounds of a run's ``results.json``."""
    return [Round.from_json(row) for row in results["rounds"]]


def points_of(rounds: Sequence[Round], link: RadioLink) -> list[Point]:
    """Return a point for each round of a run."""
    times_s = accumulate(link.round_s(done.links) for done in rounds)
    points = []
    for after, link_s in zip(standings(rounds), times_s, strict=True):
        point = Point(
            round=after.last.round,
            moved_bytes=after.moved_bytes,
            link_s=link_s,
            accuracy=after.last.accuracy,
        )
        points.append(point)
    return points


def common_accuracy(runs: Iterable[Sequence[Round]]) -> float | None:
    """Return the best accuracy that all runs reached, cut to a tenth of a percent.

    Runs that were never evaluated do not count; None where no run was.
    """
    best = []
    for rounds in runs:
        accuracies = known(done.accuracy for done in rounds)
        if accuracies:
            best.append(max(accuracies))
    if not best:
        return None
    return floor(1000 * min(best)) / 1000
