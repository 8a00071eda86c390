"""A ``train`` of a model's own, and whether it does what `nn.Module.train` does.

It is called on copies whose weights have no values, so that nothing of the model
changes.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from itertools import chain
from types import BuiltinFunctionType, FunctionType, NoneType
from typing import Any

import torch
from torch import Tensor, nn

from flwr_splitfc.model.cut_tracer import is_container

_FUNCTIONS = (FunctionType, BuiltinFunctionType)
_COMPARED = (bool, int, float, str, NoneType, *_FUNCTIONS)
"""Other attributes are objects of the copy that they are in."""


def check_train(model: nn.Module, layers: Sequence[str]) -> None:
    """Refuse a ``train`` of its own where it would be lost, such as one that freezes.

    One that leaves all as `nn.Module.train` does is no loss, such as one that calls it.

    Parameters
    ----------
    model : nn.Module
    layers : sequence of str
        Those that it is cut after. Their containers are in neither half.

    Raises
    ------
    ValueError
    """
    own = []
    for name, module in model.named_modules():
        is_lost = not name or is_container(name, layers)
        if is_lost and _does_more(module):
            own.append(name or "the model itself")
    if own:
        raise ValueError(
            f"the model cannot be cut after {layers[0]!r}: neither half would have the "
            f"train() of {', '.join(own)}: give one to the layers that it is for, such "
            "as a BatchNorm that stays in evaluation mode"
        )


def _does_more(module: nn.Module) -> bool:
    """Whether a module's ``train`` leaves anything other than `nn.Module.train`."""
    if "train" in vars(module):
        # one of this module alone may change this module when a copy's is called
        return True
    own = type(module).train
    if own is nn.Module.train:
        return False
    try:
        return any(
            _left_by(own, module, mode) != _left_by(nn.Module.train, module, mode)
            for mode in (True, False)
        )
    except Exception:
        # no copy can be made, or it needs the weights' values: more than a mode
        return True


def _left_by(
    train: Callable[[Any, bool], Any], module: nn.Module, mode: bool
) -> dict[Any, Any]:
    """Return what can be compared of a module's copy after its ``train(mode)``."""
    tensors = chain(module.parameters(), module.buffers())
    copy = deepcopy(module, {id(tensor): _stand_in(tensor) for tensor in tensors})
    train(copy, mode)
    left: dict[Any, Any] = {}
    for name, part in copy.named_modules():
        left[name, "type"] = type(part)
        for key, value in vars(part).items():
            # a method is bound to its copy
            compared = getattr(value, "__func__", value)
            if isinstance(compared, _COMPARED):
                left[name, key] = compared
    for name, parameter in copy.named_parameters():
        left[name, "requires_grad"] = parameter.requires_grad
    return left


def _stand_in(tensor: Tensor) -> Tensor:
    """Return a tensor or parameter of the same shape without values."""
    empty = torch.empty_like(tensor, device="meta")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(empty, tensor.requires_grad)
    return empty
