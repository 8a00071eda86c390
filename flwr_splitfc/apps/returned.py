"""What functions of a user's app return, checked before it is used."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from flwr_splitfc.exchange.device.pipeline import LabelledBatches
from flwr_splitfc.exchange.protocol.ticket import Purpose
from flwr_splitfc.model.structures import Structure, leaves_of

_BATCH_WANTED = "wanted a pair (x, y) of tensors, or of structures of tensors"


def batches_for(purpose: Purpose, data: object) -> LabelledBatches:
    """Return those of ``load_data``'s two kinds of batches that are for a purpose.

    Raises
    ------
    ValueError
        If it has returned no two, or none for the purpose.
    """
    if not isinstance(data, tuple | list) or len(data) != 2:
        raise ValueError(
            f"load_data(context) returned {_described(data)}, wanted two: batches to "
            "train on and batches to evaluate on, as in return trainloader, testloader"
        )
    train, evaluate = data
    batches: LabelledBatches = train if purpose == "train" else evaluate
    if batches is None:
        raise ValueError(
            f"load_data(context) returned None as the batches to {purpose} on, wanted "
            "batches (x, y), such as a DataLoader of them"
        )
    return batches


def pair_of(batch: object) -> tuple[Structure, Tensor]:
    """Return inputs and labels of one of the batches of ``load_data``.

    Raises
    ------
    ValueError
        If it is no pair of them.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise ValueError(
            f"a batch of load_data is {_described(batch)}, {_BATCH_WANTED}"
            + _advice(batch)
        )
    x, y = batch
    for name, part in (("x", x), ("y", y)):
        for leaf in leaves_of(part):
            _check_movable(name, leaf)
    return x, y


def metrics_of(
    function: str, returned: object, *, also: tuple[type, ...] = ()
) -> dict[str, Any]:
    """Return the metrics that a function has returned, as plain numbers.

    Tensors and numpy arrays of no dimension are numbers, too.

    Parameters
    ----------
    function : str
        How it is called, for the message.
    returned : object
    also : tuple of type, optional
        Other values that stay as they are.

    Raises
    ------
    ValueError
        If it is no dict of numbers.
    """
    if not isinstance(returned, Mapping):
        raise ValueError(
            f"{function} returned {_described(returned)}, wanted a dict of numbers, "
            "such as {'accuracy': 0.9}"
        )
    metrics = {}
    for key, value in returned.items():
        metrics[str(key)] = _number(function, key, value, also)
    return metrics


def _number(function: str, key: object, value: object, also: tuple[type, ...]) -> Any:
    if isinstance(value, Tensor | np.ndarray | np.generic) and value.ndim == 0:
        value = value.item()
    if isinstance(value, (int, float, *also)):
        return value
    raise ValueError(
        f"{function} returned {_described(value)} as {key!r}, wanted a number"
    )


def _check_movable(name: str, leaf: object) -> None:
    # a loop's inputs may be objects of one's own that go to a device as tensors do
    if not hasattr(leaf, "to"):
        raise ValueError(
            f"{name} of a batch of load_data has {_described(leaf)}, {_BATCH_WANTED}, "
            "such as torch.as_tensor makes"
        )


def _advice(batch: object) -> str:
    if not isinstance(batch, Mapping) or len(batch) < 2:
        return ""
    x, y = list(batch)[:2]
    return f", such as (batch[{x!r}], batch[{y!r}])"


def _described(value: object) -> str:
    """Return what a value is, for messages.

    >>> _described(None), _described((1, 2, 3))
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
