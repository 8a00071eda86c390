"""The names under which the state of a device half's optimizer goes from turn to turn.

torch's own optimizers count their steps in the state of each parameter. Others count in
a parameter group, beside their settings: schedulefree, or Adan and Lamb of timm. Such a
count goes as a scalar of the group's first parameter that trains, as ``"0.group.k"``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import torch
from torch import Tensor

from flwr_splitfc.exchange.protocol.optimizer_inputs import (
    TRAIN_MODE,
    parameters_of,
    state_of,
    stepped_copy,
)

GROUP_PREFIX = "group."
"""Of the keys of counts."""

_STEPS = 8
"""After which all counts have changed: some begin after the fifth step."""

_SETTINGS = ("lr", "initial_lr")
"""What a schedule changes, which begins anew in each turn."""


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
    kind : type
        Of what steps leave there: int, float or bool.
    """

    group: int
    key: str
    began: Any
    kind: type


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
        for index, kinds in enumerate(_kinds_of_counts(optimizer)):
            group = optimizer.param_groups[index]
            begin = end
            end += len(group["params"])
            own = [numbers[place] for place in range(begin, end) if place in numbers]
            # where none trains, nothing is counted
            if not own:
                continue
            first = own[0]
            for key, kind in kinds.items():
                name = f"{first}.{GROUP_PREFIX}{key}"
                began = group.get(key)
                counts[name] = GroupCount(index, key, began, kind)
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


def _kinds_of_counts(optimizer: torch.optim.Optimizer) -> list[dict[str, type]]:
    """Return, of each parameter group, the keys of its counts with their kinds.

    Those are numbers that the first steps of a copy change, or put there.
    """
    groups = optimizer.param_groups
    stepped = None if is_torchs(optimizer) else stepped_copy(optimizer, _STEPS)
    if stepped is None:
        return [{} for _ in groups]
    of_groups = []
    for group, after in zip(groups, stepped.param_groups, strict=True):
        kinds = {}
        for key, value in after.items():
            if may_count(value) and _counts(key, value, group.get(key)):
                kinds[key] = _kind_of(value)
        of_groups.append(kinds)
    return of_groups


def _kind_of(value: float) -> type:
    # NumPy's numbers are of kinds of their own
    return next(kind for kind in (bool, int, float) if isinstance(value, kind))


def _counts(key: str, value: float, before: object) -> bool:
    # no step changes the flag, but the turn before may have
    if key == TRAIN_MODE:
        return True
    return value != before and key not in _SETTINGS


def keeps_to_itself(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimizer has state of which `state_of` and counts do not tell.

    So have some that wrap another one, as SAM does, and those with tensors in their
    parameter groups that steps change.
    """
    wrapped = [
        one
        for one in vars(optimizer).values()
        if isinstance(one, torch.optim.Optimizer)
    ]
    is_told = type(optimizer).state_dict is not torch.optim.Optimizer.state_dict
    if not is_told and any(_has_state(one) for one in wrapped):
        return True
    stepped = stepped_copy(optimizer, _STEPS)
    if stepped is None:
        return False
    groups = zip(optimizer.param_groups, stepped.param_groups, strict=True)
    return any(_have_changed_tensors(group, after) for group, after in groups)


def _have_changed_tensors(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Tell whether steps changed a tensor of a parameter group, or put one there."""
    for key, value in after.items():
        if isinstance(value, Tensor) and not _is_same(value, before.get(key)):
            return True
    return False


def _has_state(optimizer: torch.optim.Optimizer) -> bool:
    stepped = stepped_copy(optimizer)
    return stepped is None or any(state_of(stepped).values())


def _is_same(tensor: Tensor, other: object) -> bool:
    return isinstance(other, Tensor) and torch.equal(tensor, other)


def is_torchs(optimizer: torch.optim.Optimizer) -> bool:
    """Whether it is one of torch's own: these have no counts in groups."""
    return type(optimizer).__module__.startswith("torch.optim.")
