"""What an attack learns from, and what it answers."""

from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

import torch
from torch import Tensor

from flwr_splitfc.leakage.releases import Releases

_HELD_OUT = 0.2
_MOST_HELD_OUT = 1000  # they only tell attacks apart


@dataclass(frozen=True, eq=False)
class Known:
    """Samples of which the attacker has the inputs, in the order of their release.

    The last are held out: on them attacks are compared, before one is chosen.

    Parameters
    ----------
    features : Tensor of shape (N, ...)
    inputs : Tensor of shape (N, ...)
    kept_count : int
        How many samples are not held out.
    """

    features: Tensor
    inputs: Tensor
    kept_count: int

    @property
    def kept(self) -> tuple[Tensor, Tensor]:
        """Features and inputs of the samples that attacks learn from."""
        return self.features[: self.kept_count], self.inputs[: self.kept_count]

    @property
    def held_out(self) -> tuple[Tensor, Tensor]:
        """Features and inputs of the others."""
        return self.features[self.kept_count :], self.inputs[self.kept_count :]


class Guesses(NamedTuple):
    """Inputs as an attack guesses them, (N, ...) and (M, ...).

    Those of the samples that are held out come from the others alone.
    """

    held_out: Tensor
    attacked: Tensor


def kept_count(known: Releases) -> int:
    """Return how many samples to learn from: all but a fifth, or a thousand.

    What is held out is of other batches, as what is attacked is: samples of one batch
    have the codec's choices in common, such as the columns that are left out.
    """
    count = len(known.inputs)
    kept = count - min(ceil(_HELD_OUT * count), _MOST_HELD_OUT)
    if known.batch is None:
        return kept
    first_of_batch = int(torch.searchsorted(known.batch, known.batch[kept]))
    # a single batch has to be divided
    return first_of_batch or kept
