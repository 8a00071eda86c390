"""The changes that several devices made to the same model, added to it.

Of a model ``w``, which devices trained to ``w_1, ..., w_d``, that is

    w + (w_1 - w) + ... + (w_d - w).

Averages of batches are no weights, and a sum of their changes may make a variance
negative: those of batch normalisation are averaged.
"""

from collections.abc import Sequence

import numpy as np
from flwr.app import Array, ArrayRecord

_AVERAGED = ("running_mean", "running_var")
"""How torch names the averages that a model keeps of batches."""


def add_changes(model: ArrayRecord, trained: Sequence[ArrayRecord]) -> ArrayRecord:
    """Return a model with the changes of all that were trained from it.

    Parameters
    ----------
    model : ArrayRecord
        Integers, such as counts of batches, change like weights. Entries that are not
        finite, as in a mask, stay as they are.
    trained : sequence of ArrayRecord
        One at least, with the arrays of `model`. Of truth values the last counts.
    """
    sums = ArrayRecord()
    for name, array in model.items():
        after = [each[name].numpy() for each in trained]
        sums[name] = Array(_combined(name, array.numpy(), after))
    return sums


def _combined(name: str, before: np.ndarray, after: Sequence[np.ndarray]) -> np.ndarray:
    if before.dtype == bool:
        return after[-1]
    if name.endswith(_AVERAGED):
        return np.asarray(np.mean(after, axis=0), dtype=before.dtype)
    with np.errstate(invalid="ignore"):
        changes = [each - before for each in after]
    changed = before + sum(changes)
    return np.where(np.isfinite(before), changed, before)
