"""The names under which the state of a device half's optimizer goes from turn to turn.

torch's own optimizers count their steps in the state of each parameter. Others count in
a parameter group, beside their settings: schedulefree, or Adan and Lamb of timm. Such a
count goes as a scalar of the group's first parameter that trains, as ``"0.group.k"``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, TypeGuard

import torch
from torch import Tensor

from flwr_splitfc.exchange.protocol.optimizer_inputs import parameters_of, stepped_copy

GROUP_PREFIX = "group."
"""Of the keys of counts."""


@dataclass(frozen=True)
class GroupCount:
    """A number in a parameter group that steps change.

    Attributes
    ----------
    group : int
        The group's place among all.
    key : str
        The number's, in the group.
    began : object
        What is there before the first step: None if there is nothing.
    """

    group: int
    key: str
    began: Any


@dataclass(frozen=True)
class StateNames:
    """What goes from turn to turn of an optimizer's state, and how it is named.

    Attributes
    ----------
    places : sequence of int
        Of the parameters that train, among all. Names number the former.
    counts : dict of str to GroupCount
        By their names.
    """

    places: Sequence[int]
    counts: dict[str, GroupCount] = field(default_factory=dict)

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer) -> "StateNames":
        """Return the names of the state of an optimizer that has made no step.

        A turn takes them when it begins, as the turn before did: a loop may freeze some
        parameters and train others meanwhile, or begin a schedule.
        """
        places = list(trained(parameters_of(optimizer)))
        numbers = {place: number for number, place in enumerate(places)}
        counts = {}
        end = 0
        for index, keys in enumerate(_counted_keys(optimizer)):
            group = optimizer.param_groups[index]
            begin, end = end, end + len(group["params"])
            own = [numbers[place] for place in range(begin, end) if place in numbers]
            for key in keys if own else []:
                count = GroupCount(index, key, group.get(key))
                counts[f"{own[0]}.{GROUP_PREFIX}{key}"] = count
        return cls(places, counts)


def trained(parameters: Sequence[Tensor]) -> dict[int, Tensor]:
    """Return the parameters that train, by their index among all."""
    return {
        index: parameter
        for index, parameter in enumerate(parameters)
        if parameter.requires_grad
    }


def may_count(value: object) -> TypeGuard[float]:
    """Whether an entry of a parameter group is a number, or a flag."""
    return isinstance(value, int | float)


def _counted_keys(optimizer: torch.optim.Optimizer) -> list[list[str]]:
    """Return the keys of each parameter group's counts.

    Those are numbers that a step of a copy changes or puts there, and numbers among the
    optimizer's defaults that are no setting: steps change some now and then.
    """
    if is_torchs(optimizer):
        return []
    # itself, if it takes no step: some want a closure
    stepped = stepped_copy(optimizer) or optimizer
    declared = getattr(optimizer, "defaults", {}).keys() - _settings(optimizer)
    groups = zip(optimizer.param_groups, stepped.param_groups, strict=True)
    return [
        [
            key
            for key, value in after.items()
            if may_count(value) and (key in declared or value != group.get(key))
        ]
        for group, after in groups
    ]


def is_torchs(optimizer: torch.optim.Optimizer) -> bool:
    """Whether it is one of torch's own: these have no counts in groups."""
    return type(optimizer).__module__.startswith("torch.optim.")


def _settings(optimizer: torch.optim.Optimizer) -> set[str]:
    """Return the names of the settings: the arguments of constructors.

    Where an optimizer wraps another one, those of both.
    """
    wrapped = [
        value
        for value in vars(optimizer).values()
        if isinstance(value, torch.optim.Optimizer)
    ]
    kinds = {kind for part in [optimizer, *wrapped] for kind in type(part).__mro__}
    makers = [vars(kind)["__init__"] for kind in kinds if "__init__" in vars(kind)]
    return {name for maker in makers for name in signature(maker).parameters}
