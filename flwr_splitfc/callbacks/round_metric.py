"""A number by which rounds are compared."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

from flwr_splitfc.run import Round

_BETTER = ("highest", "lowest")
_NUMBERS = (int, float)


@dataclass(frozen=True)
class RoundMetric:
    """A number of rounds, and whether more of it is better.

    Parameters
    ----------
    name : str
        A field of `Round`, such as ``accuracy`` or ``loss``, or one of the app's own
        metrics of evaluation.
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

    def of(self, done: Round) -> float | None:
        """Return the number of a round; None where it has none."""
        value = _numbers(done).get(self.name)
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
        if all(self.of(done) is None for done in rounds):
            there = ", ".join(_numbers(rounds[-1]))
            raise ValueError(f"no round has {self.name!r}; this one has {there}")


def _numbers(done: Round) -> dict[str, float]:
    """Return all numbers of a round by their names."""
    own = {each.name: getattr(done, each.name) for each in fields(done)}
    every = {**done.evaluation, **own}
    return {
        name: float(value)
        for name, value in every.items()
        if isinstance(value, _NUMBERS)
    }
