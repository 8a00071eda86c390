"""A run after each of its rounds: its accuracy, its bytes, its time on a link."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import floor
from typing import Any

from flwr_splitfc.compare.report.radio_link import RadioLink
from flwr_splitfc.run.rounds import Round, standings


@dataclass(frozen=True)
class Point:
    """A run as it stands after a round.

    Parameters
    ----------
    round : int
    moved_bytes : int
        All bytes so far.
    link_s : float or None
        How long they took on the link; None for runs of versions that did not write
        ``links`` into their rows.
    accuracy : float or None
        None in a round without evaluation.
    """

    round: int
    moved_bytes: int
    link_s: float | None
    accuracy: float | None


def rounds_of(results: Mapping[str, Any]) -> list[Round]:
    """Read the rounds of a run's ``results.json``."""
    return [Round.from_json(row) for row in results["rounds"]]


def points_of(rounds: Sequence[Round], link: RadioLink) -> list[Point]:
    """Return a point for each round of a run."""
    return [
        Point(after.last.round, after.moved_bytes, link_s, after.last.accuracy)
        for after, link_s in zip(
            standings(rounds), _seconds_so_far(rounds, link), strict=True
        )
    ]


def _seconds_so_far(rounds: Sequence[Round], link: RadioLink) -> Sequence[float | None]:
    seconds = []
    for done in rounds:
        if done.links is None:
            return [None] * len(rounds)
        seconds.append(link.round_s(done.links))
    return list(accumulate(seconds))


def common_accuracy(runs: Iterable[Sequence[Round]]) -> float | None:
    """Return the best accuracy that all runs reached, cut to a tenth of a percent.

    Runs that were never evaluated do not count; None where no run was.
    """
    best = []
    for rounds in runs:
        accuracies = [done.accuracy for done in rounds if done.accuracy is not None]
        if accuracies:
            best.append(max(accuracies))
    return floor(1000 * min(best)) / 1000 if best else None
