"""A number by which rounds are compared."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from flwr_splitfc.run import Round
from flwr_splitfc.run.columns import known

_BETTER = ("highest", "lowest")


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
        evaluated = any(self.name in done.evaluation for done in rounds)
        numbers_of = _evaluation if evaluated else _own_numbers
        return [self._comparable(numbers_of(done).get(self.name)) for done in rounds]

    def _comparable(self, value: float | None) -> float | None:
        if value is not None and math.isnan(value):
            return math.inf if self.better == "lowest" else -math.inf
        return value

    def is_better(self, value: float, than: float | None) -> bool:
        """Return whether a number is better than another, or there is no other."""
        if than is None:
            return True
        return value < than if self.better == "lowest" else value > than

    def check_known(self, rounds: Sequence[Round]) -> None:
        """Refuse a metric that none of some rounds has, the last one evaluated.

        Raises
        ------
        ValueError
            It says which metrics the last round has.
        """
        if not known(self.of(rounds)):
            last = rounds[-1]
            there = ", ".join({**_evaluation(last), **_own_numbers(last)})
            raise ValueError(f"no round has {self.name!r}; this one has {there}")


def _evaluation(done: Round) -> dict[str, float]:
    """Return the numbers of a round's evaluation, by their names."""
    return _numbers(done.evaluation)


def _own_numbers(done: Round) -> dict[str, float]:
    """Return a round's fields that are numbers, by their names."""
    return _numbers({each.name: getattr(done, each.name) for each in fields(done)})


def _numbers(values: Mapping[str, object]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float)
    }
