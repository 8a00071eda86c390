"""What the server half's optimizer and scheduler were made with, to compare two runs.

A checkpoint brings back the settings of its own run, learning rate and all: one that
was made with others must not go on from it.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler


def optimizer_settings(
    optimizer: torch.optim.Optimizer, scheduler: LRScheduler | None
) -> dict[str, str]:
    """Return both classes, and the settings of each, as texts under names.

    Both are as they were made: a step of the scheduler changes a learning rate.

    >>> weight = torch.nn.Parameter(torch.zeros(3))
    >>> settings = optimizer_settings(torch.optim.SGD([weight], lr=0.1), None)
    >>> settings["optimizer"], settings["optimizer's lr"], settings["scheduler"]
    ('SGD', '0.1', 'none')
    """
    settings = {"optimizer": type(optimizer).__name__, "scheduler": "none"}
    settings |= _texts("optimizer", optimizer.param_groups)
    if scheduler is not None:
        settings["scheduler"] = type(scheduler).__name__
        settings |= _texts("scheduler", [scheduler.state_dict()])
    return settings


def _texts(owner: str, groups: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return each setting as a text, with its value in each group."""
    names = {name for group in groups for name in group if name != "params"}
    return {
        f"{owner}'s {name}": ", ".join(_text(group.get(name)) for group in groups)
        for name in sorted(names)
    }


def _text(value: Any) -> str:
    return json.dumps(value, default=_plain, skipkeys=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.tolist()
    # the text of any other object may name its place in memory
    return type(value).__name__
