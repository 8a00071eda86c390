"""A mini-batch that the server half was trained on, as listeners get it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class TrainedStep:
    """One mini-batch of training.

    Parameters
    ----------
    server_round : int
        From 1.
    device : str
        The device's name.
    step : int
        Its number in the device's turn, from 1.
    rows : int
        Samples of the mini-batch.
    loss : float or None
        The mean over the samples that were sent; NaN where none of their labels counts,
        None where the loss is the device's.
    uplink_bits_per_entry, downlink_bits_per_entry : float
        Of the features and of their gradient, per entry of the features.
    """

    server_round: int
    device: str
    step: int
    rows: int
    loss: float | None
    uplink_bits_per_entry: float
    downlink_bits_per_entry: float


StepListener: TypeAlias = Callable[[TrainedStep], None]
"""Gets each step when it was applied, in a thread that answers devices."""
