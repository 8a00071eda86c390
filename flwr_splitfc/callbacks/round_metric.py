"""A number by which rounds are compared."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from flwr_splitfc.run import Round
from flwr_splitfc.run.columns import known

_BETTER = ("highest", "lowest")


class UnknownMetric(ValueError):
    """A metric that rounds do not have."""


@dataclass(frozen=True)
class RoundMetric:
    """A number of rounds, and whether more of it is better.

    Parameters
    ----------
    name : str
        A number that the app's evaluation returned or, if none has the name, a field of
        `Round`, such as ``accuracy`` or ``loss``.
    better : "highest" or "lowest"
    """

    name: str
    better: str

    @classmethod
    def parse(cls, text: str) -> "RoundMetric":
        """Read a text such as "highest accuracy" or "lowest loss".

        Raises
        ------
        ValueError
            If it is none.
        """
        better, _, name = text.strip().partition(" ")
        if better not in _BETTER or not name:
            raise ValueError(
                f"{text!r} is no metric, wanted such as 'highest accuracy' or "
                "'lowest loss'"
            )
        return cls(name.strip(), better)

    def __str__(self) -> str:
        return f"{self.better} {self.name}"

    def of(self, rounds: Sequence[Round]) -> list[float | None]:
        """Return the number of each round; None where it has none.

        Rounds without evaluation have none if evaluation gives it in others: a training
        loss says nothing beside losses of evaluation.
        """
        if any(self.name in done.evaluation for done in rounds):
            values: list[Any] = [done.evaluation.get(self.name) for done in rounds]
        elif self.name in _FIELDS:
            values = [getattr(done, self.name) for done in rounds]
        else:
            values = [None] * len(rounds)
        return [self._comparable(value) for value in values]

    def _comparable(self, value: object) -> float | None:
        """Return a number, NaN as the worst there is, and None for all else."""
        if not isinstance(value, int | float):
            return None
        if math.isnan(value):
            return math.inf if self.better == "lowest" else -math.inf
        return float(value)

    def is_better(self, value: float, than: float | None) -> bool:
        """Return whether a number is better than another, or there is no other."""
        if than is None:
            return True
        return value < than if self.better == "lowest" else value > than

    def check_known(self, rounds: Sequence[Round]) -> None:
        """Refuse a metric that none of some rounds has, the last one evaluated.

        Raises
        ------
        UnknownMetric
            It says which metrics the last round has.
        """
        if not known(self.of(rounds)):
            last = rounds[-1]
            there = ", ".join(_names_of_numbers(last))
            raise UnknownMetric(
                f"no round has {self.name!r}; this one has {there}. Let evaluation "
                "return it, or name another: metric= of BestModel and EarlyStopping, "
                "best-metric in a run-config"
            )


_FIELDS = [each.name for each in fields(Round)]


def _names_of_numbers(done: Round) -> list[str]:
    """Return the names of a round's numbers, those of its evaluation first."""
    own = {name: getattr(done, name) for name in _FIELDS}
    values = {**done.evaluation, **own}
    return [name for name, value in values.items() if isinstance(value, int | float)]
