"""Rounds in which every device failed: too many of them end the run."""

import re
from collections.abc import Iterable
from itertools import takewhile
from logging import getLogger

from flwr.app import Message

from flwr_splitfc.exchange.server.endpoint.ray_cluster import has_ray
from flwr_splitfc.run.progress import Progress

logger = getLogger("flwr")


class RunFailed(RuntimeError):
    """A run cannot go on: every device failed, or too few devices came."""


class SimulationBroken(RuntimeError):
    """A process of Flower's simulation engine died, which spoils all later rounds.

    Flower goes on giving it devices. Each fails at once, so the dead process is free
    again before the others, and gets most of them.
    """


# Ray's words for the task under way, and for later ones
_DEAD_ACTOR = re.compile(r"The actor (died|is dead)")


class FailedRounds:
    """Counts the rounds in a row in which every device failed.

    Parameters
    ----------
    progress : Progress
        The run's, whose ledger has the reasons.
    most : int
        How many such rounds end the run.
    """

    def __init__(self, progress: Progress, most: int) -> None:
        if most < 1:
            raise ValueError(f"max_failed_rounds is {most}, wanted 1 or more")
        self._progress = progress
        self._most = most
        self._failed: dict[int, bool] = {}  # by round, of those that asked a device

    @property
    def in_a_row(self) -> int:
        """Up to the last round; 0 after one in which a device succeeded."""
        latest_first = reversed(self._failed.values())
        return sum(takewhile(bool, latest_first))

    def check(
        self, server_round: int, replies: Iterable[Message], turns_of_all: int = 1
    ) -> None:
        """Count a round of training.

        Parameters
        ----------
        server_round : int
        replies : iterable of Message
            Those of the devices that trained.
        turns_of_all : int (default: 1)
            Rounds like this one after which each device has had its turn.

        Raises
        ------
        RunFailed
            If it is one too many. It says why the round's first device failed.
        """
        if any(reply.has_content() for reply in replies):
            self._failed[server_round] = False
        # without failures no device was asked
        elif self._progress.ledger.failures(server_round, "train"):
            self._failed[server_round] = True
        if self.in_a_row >= self._most * turns_of_all:
            # Flower ends the others; the results show this one, too
            self._progress.end_round(server_round, {}, {})
            raise RunFailed(f"{self._why()} (max_failed_rounds is {self._most})")

    def fail(self, server_round: int, why: str, turns_of_all: int = 1) -> None:
        """Count a round as failed whose replies were good, each by itself.

        Parameters
        ----------
        server_round : int
            A round that was checked.
        why : str
            Every device failed with it.
        turns_of_all : int (default: 1)
            As in `check`.

        Raises
        ------
        RunFailed
            As in `check`.
        """
        logger.warning("Round %d failed: %s", server_round, why)
        ledger = self._progress.ledger
        asked = ledger.links(server_round, "train")
        ledger.add_failures(server_round, "train", dict.fromkeys(asked, why))
        self.check(server_round, [], turns_of_all)

    def check_simulation(self, server_round: int) -> None:
        """Refuse to go on after a round in which a process of the simulation died.

        Raises
        ------
        SimulationBroken
        """
        # elsewhere a device may say what it likes
        if not has_ray():
            return
        failures = self._progress.ledger.failures(server_round)
        for device, reason in failures.items():
            if _DEAD_ACTOR.search(reason):
                raise SimulationBroken(
                    f"a process of the simulation died in round {server_round}, and "
                    f"most devices would fail from now on; device {device} with: "
                    f"{reason}. With a checkpoint, the same command goes on in new "
                    "processes"
                )

    def check_end(self) -> None:
        """Refuse to call a run finished in which no device ever succeeded.

        Raises
        ------
        RunFailed
        """
        if self.in_a_row and all(self._failed.values()):
            raise RunFailed(f"nothing was trained: {self._why()}")

    def _why(self) -> str:
        last = next(reversed(self._failed))
        failures = self._progress.ledger.failures(last, "train")
        device, reason = next(iter(failures.items()))
        rounds = f"round {last}"
        if self.in_a_row > 1:
            rounds = f"rounds {last - self.in_a_row + 1} to {last}"
        return f"every device failed in {rounds}, device {device} with: {reason}"
