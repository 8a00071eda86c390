"""Rounds in which every device failed: too many of them end the run."""

from collections.abc import Iterable

from flwr.app import Message

from flwr_splitfc.run.progress import Progress


class RunFailed(RuntimeError):
    """A run cannot go on: every device failed, or too few devices came."""


class FailedRounds:
    """Counts the rounds in a row in which every device failed.

    Parameters
    ----------
    progress : Progress
        The run's, whose ledger has the reasons.
    most : int
        How many such rounds end the run.

    Attributes
    ----------
    in_a_row : int
        Up to the last round; 0 after one in which a device succeeded.
    """

    def __init__(self, progress: Progress, most: int) -> None:
        if most < 1:
            raise ValueError(f"max_failed_rounds is {most}, wanted 1 or more")
        self.in_a_row = 0
        self._progress = progress
        self._most = most
        self._any_succeeded = False
        self._last_round = 0

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
            self._any_succeeded = True
            self.in_a_row = 0
        # without failures no device was asked
        elif self._progress.ledger.failures(server_round):
            self.in_a_row += 1
            self._last_round = server_round
        if self.in_a_row >= self._most * turns_of_all:
            # Flower ends the others; the results show this one, too
            self._progress.end_round(server_round, {}, {})
            raise RunFailed(f"{self._why()} (max_failed_rounds is {self._most})")

    def check_end(self) -> None:
        """Refuse to call a run finished in which no device ever succeeded.

        Raises
        ------
        RunFailed
        """
        if self.in_a_row and not self._any_succeeded:
            raise RunFailed(f"nothing was trained: {self._why()}")

    def _why(self) -> str:
        failures = self._progress.ledger.failures(self._last_round)
        device, reason = next(iter(failures.items()))
        first = self._last_round - self.in_a_row + 1
        rounds = f"round {self._last_round}"
        if self.in_a_row > 1:
            rounds = f"rounds {first} to {self._last_round}"
        return f"every device failed in {rounds}, device {device} with: {reason}"
