"""Checks of the parts of a model and its training that users give."""

from typing import Any

import torch
from torch import nn

_MADE = (nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler)


def check_server_model(server_model: object) -> None:
    """Refuse what is no module.

    Raises
    ------
    ValueError
    """
    if isinstance(server_model, nn.Module):
        return
    described = _described(server_model)
    raise ValueError(f"server_model is {described}, wanted an nn.Module")


def check_function(name: str, value: object, call: str) -> None:
    """Refuse what is no function, and classes, which only make one.

    Parameters
    ----------
    name : str
        The parameter's, for the message.
    value : object
    call : str
        How it is called.

    Raises
    ------
    ValueError
    """
    if callable(value) and not isinstance(value, type):
        return
    raise ValueError(f"{name} is {_described(value)}, wanted a function: {call}")


def check_factory(name: str, value: Any, call: str, example: str) -> None:
    """Refuse what makes nothing: no function, or what is made already.

    Parameters
    ----------
    name, value, call
        As in `check_function`.
    example : str
        One that is right.

    Raises
    ------
    ValueError
    """
    if callable(value) and not isinstance(value, _MADE):
        return
    raise ValueError(
        f"{name} is {_described(value)}, wanted a function that makes one: "
        f"{call}, such as {example}"
    )


def check_optimizer(value: object) -> None:
    """Refuse an `optimizer` that makes none, as `check_factory` does."""
    check_factory(
        "optimizer",
        value,
        "optimizer(parameters)",
        "functools.partial(torch.optim.Adam, lr=1e-3)",
    )


def _described(value: object) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}, not a {value.__name__}()"
    return f"a {type(value).__name__}"
