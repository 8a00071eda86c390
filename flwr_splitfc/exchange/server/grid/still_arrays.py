"""Arrays of a model that training leaves as they are, such as tables that it looks up.

A model may divide by the entries of a table, or take their logarithm, and then a coded
one is another function. What trains is not known from the arrays, but what has trained.
"""

import numpy as np
from flwr.app import Array, ArrayRecord

_MOST_ENTRIES = 4096
"""Of an array: larger ones, such as frozen layers, would take too many bytes."""

_ROUNDING = 1e-5
"""Relative: what averages of equal arrays may differ by."""


def small_arrays(model: ArrayRecord) -> ArrayRecord:
    """Return the arrays of a model that `still_arrays` looks at."""
    return ArrayRecord(
        {name: array for name, array in model.items() if _is_small(array)}
    )


def still_arrays(model: ArrayRecord, first: ArrayRecord) -> set[str]:
    """Return the names of the arrays that are as in the first model.

    >>> first = ArrayRecord({"table": Array(np.ones(2)), "kernel": Array(np.ones(2))})
    >>> trained = ArrayRecord({**first, "kernel": Array(np.zeros(2))})
    >>> still_arrays(trained, small_arrays(first))
    {'table'}
    """
    return {
        name
        for name, array in first.items()
        if name in model and _is_same(model[name], array)
    }


def _is_small(array: Array) -> bool:
    return int(np.prod(array.shape)) <= _MOST_ENTRIES


def _is_same(array: Array, first: Array) -> bool:
    if array.shape != first.shape:
        return False
    # of numbers: a mask's infinities are equal, and so is NaN
    return np.allclose(
        array.numpy(), first.numpy(), rtol=_ROUNDING, atol=0.0, equal_nan=True
    )
