"""The counts of a device's turn."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from flwr_splitfc.exchange.protocol.stopwatch import Stopwatch


@dataclass
class TurnCounts:
    """The counts of a session in one turn, on which its next step depends.

    Parameters
    ----------
    steps : int
        Steps begun. Each derives what is random in it from its number.
    full_rows : int
        Rows of the largest batch so far, for which budgets are checked.
    rows : int
        Samples of all steps that are over.
    loss_sum : float
        Of `loss_rows` samples.
    loss_rows : int
        Those of `rows` that are in mini-batches with a label that counts.
    predictions : int
        Mini-batches that were predicted on. They are no steps, and have no number.
    predicted_full_rows : int
        Rows of the largest of them.
    predicted_rows : int
        Samples of all of them.
    feature_error_sum : float
        Of the features as the server decodes them, in the measured steps; where the
        output's gradient goes up, too, of whichever is further off.
    feature_error_steps : int
        How many steps were measured.
    coding : Stopwatch
        Seconds spent on encoding and decoding.
    offered : int
        Mini-batches that the loop offered to the server half, whether they went up or
        not.
    unsent_rows : int
        Samples of those that did not.
    """

    steps: int = 0
    full_rows: int = 0
    rows: int = 0
    loss_sum: float = 0.0
    loss_rows: int = 0
    predictions: int = 0
    predicted_full_rows: int = 0
    predicted_rows: int = 0
    feature_error_sum: float = 0.0
    feature_error_steps: int = 0
    coding: Stopwatch = field(default_factory=Stopwatch)
    offered: int = 0
    unsent_rows: int = 0

    def saved(self) -> dict[str, float]:
        """Return the counts as numbers by name."""
        counts = {name: getattr(self, name) for name in _ZEROS}
        return {**counts, _CODING: self.coding.seconds}

    @classmethod
    def restored(cls, saved: Mapping[str, float]) -> "TurnCounts":
        """Return the counts that were `saved`; other names are left alone."""
        # all travel as floats, and most are integers
        counts = {name: type(zero)(saved[name]) for name, zero in _ZEROS.items()}
        return cls(coding=Stopwatch(saved[_CODING]), **counts)


_CODING = "codec_seconds"
_ZEROS: dict[str, Any] = {
    each.name: each.default for each in fields(TurnCounts) if each.name != "coding"
}
