"""Whole numbers in a model's arrays, such as counts, masks and tables of indices.

Flower's strategies average every array in floats. A device that loads 2.999... into an
array of integers gets 2, and an average that is coded as a weight is off by more.
"""

import numpy as np
from flwr.app import Array, ArrayRecord

_ROUNDING = 1e-12  # of a mean in float64, relative


def whole_numbers(model: ArrayRecord) -> ArrayRecord:
    """Return the arrays of a model that hold integers or bools.

    >>> model = ArrayRecord({"count": Array(np.array(3)), "scale": Array(np.ones(2))})
    >>> list(whole_numbers(model))
    ['count']
    """
    return ArrayRecord(
        {name: array for name, array in model.items() if _kind(array) in "biu"}
    )


def with_whole_numbers(averaged: ArrayRecord, before: ArrayRecord) -> ArrayRecord:
    """Return averages of models, with whole numbers where the models had them.

    What moved by half at most is as it was before, and the rest is rounded.

    Parameters
    ----------
    averaged, before : ArrayRecord
        Arrays of float64 in `averaged`, which Flower makes of integers and bools, get
        back the type that they have in `before`, where that has their shape.

    Examples
    --------
    >>> before = ArrayRecord({"count": Array(np.array([3, 3]))})
    >>> averaged = ArrayRecord({"count": Array(np.array([2.9999999, 4.6]))})
    >>> with_whole_numbers(averaged, before)["count"].numpy()
    array([3, 5])
    """
    models = ArrayRecord(dict(averaged))
    for name, array in whole_numbers(before).items():
        mean = averaged.get(name)
        if mean is None or mean.dtype != "float64" or mean.shape != array.shape:
            continue
        rounded = _rounded(mean.numpy(), array.numpy())
        models[name] = Array(rounded)
    return models


def _rounded(means: np.ndarray, before: np.ndarray) -> np.ndarray:
    # the greatest integers are none of float64, and NaN is none of them
    is_as_before = np.isclose(means, before, rtol=_ROUNDING, atol=0.5)
    least, most = _range(before.dtype)
    with np.errstate(invalid="ignore"):
        within = np.rint(means).clip(least, most)
        rounded = within.astype(before.dtype)
    greatest = np.array(most, before.dtype)
    rounded = np.where(means >= float(most), greatest, rounded)
    stays = is_as_before | np.isnan(means)
    return np.where(stays, before, rounded)


def _range(dtype: np.dtype) -> tuple[int, int]:
    if dtype.kind == "b":
        return 0, 1
    return np.iinfo(dtype).min, np.iinfo(dtype).max


def _kind(array: Array) -> str:
    return np.dtype(array.dtype).kind
