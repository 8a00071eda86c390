"""A ``train`` of a model's own, and whether it does what `nn.Module.train` does.

It is called on copies whose weights have no values. What it reaches beside these, as a
global, it does change.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from itertools import chain
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from flwr_splitfc.model.cut_tracer import is_container

_MODES = (True, False, True, False)
"""One may do more where the mode changes, and where it does not."""

_COMPARED = (bool, int, float, str, NoneType)
"""Others are objects of the copy that they are in."""

_CHANGED = "changed"

_Snapshot = dict[tuple[str, ...], Any]


class _TensorOperations(TorchDispatchMode):
    """Counts operations on tensors, which `nn.Module.train` has none of."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


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
            f"train() of {', '.join(own)}, which does more than nn.Module.train, or "
            "cannot be tried on a copy: give one to the layers that it is for, such as "
            "a BatchNorm that stays in evaluation mode"
        )


def _does_more(module: nn.Module) -> bool:
    """Whether a module's ``train`` leaves anything other than `nn.Module.train`."""
    if "train" in vars(module):
        # one of this module alone may change this module when a copy's is called
        return True
    own = type(module).train
    if own is nn.Module.train:
        return False
    modes = [(part, part.training) for part in module.modules()]
    try:
        does_more = _left_by(own, module) != _left_by(nn.Module.train, module)
    except Exception:
        # no copy can be made, or it reads the weights' values
        does_more = True
    for part, mode in modes:
        part.training = mode
    return does_more


def _left_by(
    train: Callable[[Any, bool], Any], module: nn.Module
) -> list[Mapping[tuple[str, ...], Any]]:
    """Return what each call of a ``train`` has changed of a module's copy."""
    tensors = chain(module.parameters(), module.buffers())
    copy = deepcopy(module, {id(tensor): _stand_in(tensor) for tensor in tensors})
    before, model_before = _snapshot(copy), _snapshot(module)
    left: list[Mapping[tuple[str, ...], Any]] = []
    with _TensorOperations() as operations:
        for mode in _MODES:
            train(copy, mode)
            changes = _changes(before, _snapshot(copy))
            changes["operations",] = operations.count
            # a copy's function may hold the module itself
            changes["model",] = bool(_changes(model_before, _snapshot(module)))
            left.append(changes)
    return left


def _snapshot(module: nn.Module) -> _Snapshot:
    """Return what there is of a module: attributes, what is in them, and storages."""
    seen: _Snapshot = {}
    for name, part in module.named_modules():
        for key, value in vars(part).items():
            seen[name, key] = value
            for place, inner in _items(value):
                seen[name, key, place] = inner
    for name, tensor in chain(module.named_parameters(), module.named_buffers()):
        seen[name, "requires_grad", ""] = tensor.requires_grad
        # `tensor.data = another` leaves the tensor, and takes another storage
        seen[name, "storage", ""] = tensor.untyped_storage()._cdata
    return seen


def _items(value: Any) -> list[tuple[str, Any]]:
    """Return what is in a container, such as the hooks of a layer."""
    if isinstance(value, Mapping):
        return [(repr(key), inner) for key, inner in value.items()]
    if isinstance(value, list | tuple):
        return [(str(place), inner) for place, inner in enumerate(value)]
    if isinstance(value, set | frozenset):
        return [("members", str(sorted(map(id, value))))]
    return []


def _changes(before: _Snapshot, after: _Snapshot) -> dict[tuple[str, ...], Any]:
    """Return what is other than before: its value, if that can be compared."""
    changes: dict[tuple[str, ...], Any] = {}
    for key in before.keys() | after.keys():
        old, new = before.get(key, _CHANGED), after.get(key, _CHANGED)
        if _is_same(old, new):
            continue
        changes[key] = new if isinstance(new, _COMPARED) else _CHANGED
    return changes


def _is_same(old: Any, new: Any) -> bool:
    if old is new:
        return True
    is_compared = isinstance(old, _COMPARED) and type(old) is type(new)
    return is_compared and bool(old == new)


def _stand_in(tensor: Tensor) -> Tensor:
    """Return a tensor or parameter of the same shape without values."""
    empty = torch.empty_like(tensor, device="meta")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(empty, tensor.requires_grad)
    return empty
