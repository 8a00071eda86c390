"""The counts of a device's turn."""

from collections.abc import Mapping
from dataclasses import dataclass, field

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
        return {
            "number": self.steps,
            "full_rows": self.full_rows,
            "rows": self.rows,
            "loss_sum": self.loss_sum,
            "loss_rows": self.loss_rows,
            "predictions": self.predictions,
            "predicted_full_rows": self.predicted_full_rows,
            "predicted_rows": self.predicted_rows,
            "feature_error_sum": self.feature_error_sum,
            "feature_error_steps": self.feature_error_steps,
            "codec_seconds": self.coding.seconds,
            "offered": self.offered,
            "unsent_rows": self.unsent_rows,
        }

    @classmethod
    def restored(cls, saved: Mapping[str, float]) -> "TurnCounts":
        """Return the counts that were `saved`; other names are left alone."""
        return cls(
            steps=int(saved["number"]),
            full_rows=int(saved["full_rows"]),
            rows=int(saved["rows"]),
            loss_sum=saved["loss_sum"],
            # of an earlier version, all count
            loss_rows=int(saved.get("loss_rows", saved["rows"])),
            predictions=int(saved["predictions"]),
            predicted_full_rows=int(saved["predicted_full_rows"]),
            predicted_rows=int(saved["predicted_rows"]),
            feature_error_sum=saved["feature_error_sum"],
            feature_error_steps=int(saved["feature_error_steps"]),
            coding=Stopwatch(saved["codec_seconds"]),
            offered=int(saved["offered"]),
            unsent_rows=int(saved["unsent_rows"]),
        )
