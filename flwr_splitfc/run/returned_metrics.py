"""Metrics that a function of a user's has returned, checked before they are used."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor


def metrics_of(
    function: str, returned: object, *, with_lists: bool = False
) -> dict[str, Any]:
    """Return the metrics that a function has returned, as plain numbers.

    Tensors and numpy arrays of no dimension are numbers, too.

    Parameters
    ----------
    function : str
        How it is called, for the message.
    returned : object
    with_lists : bool (default: False)
        Whether values may be lists of numbers, too.

    Raises
    ------
    ValueError
        If it is no dict of such values.
    """
    if not isinstance(returned, Mapping):
        raise ValueError(
            f"{function} returned {described(returned)}, wanted a dict of numbers, "
            "such as {'accuracy': 0.9}"
        )
    metrics: dict[str, Any] = {}
    for key, value in returned.items():
        if with_lists and isinstance(value, list | tuple):
            numbers = [_number(function, key, each) for each in value]
            # a MetricRecord takes lists of one type
            is_whole = all(isinstance(number, int) for number in numbers)
            metrics[str(key)] = numbers if is_whole else list(map(float, numbers))
        else:
            metrics[str(key)] = _number(function, key, value)
    return metrics


def _number(function: str, key: object, value: object) -> int | float:
    if isinstance(value, Tensor | np.ndarray | np.generic) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bool):
        # a MetricRecord takes none
        return int(value)
    if isinstance(value, int | float):
        return value
    raise ValueError(
        f"{function} returned {described(value)} as {key!r}, wanted a number"
    )


def described(value: object) -> str:
    """Return what a value is, for messages.

    >>> described(None), described((1, 2, 3))
    ('None', 'a tuple of 3')
    """
    kind = type(value).__name__
    if value is None:
        return "None"
    if isinstance(value, Tensor | np.ndarray):
        return f"a {kind} of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a {kind} with {', '.join(map(repr, value)) or 'no keys'}"
    if isinstance(value, tuple | list):
        return f"a {kind} of {len(value)}"
    return f"a {kind}"
