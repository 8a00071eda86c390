"""What a loss reaches beside its arguments: closures, globals, attributes.

A loss that reaches into the server half is right for that half alone. A copy of it
would train without what the loss takes from there, and nothing would show it.
"""

import dis
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from inspect import getattr_static, isfunction, ismethod
from itertools import chain
from types import CodeType, FunctionType, MethodType
from typing import Any

from torch import nn

from flwr_splitfc.model import LossFn

_GLOBAL = ("LOAD_GLOBAL", "LOAD_NAME")
_ATTRIBUTE = ("LOAD_ATTR", "LOAD_METHOD")
_PARTS_OF_MODULES = ("_modules", "_parameters", "_buffers")


def check_loss_of_copies(loss_fn: LossFn | None, model: nn.Module) -> None:
    """Refuse a loss that reaches into a model of which copies are to be trained.

    What its code reaches by attributes of other objects than its own is not followed.

    Raises
    ------
    ValueError
    """
    parts = chain(model.modules(), model.parameters(), model.buffers())
    own = {id(part) for part in parts}
    if any(id(held) in own for held in _reached(loss_fn)):
        raise ValueError(
            "each device is to have a copy of the server half, and loss_fn reaches "
            "into the original: what it takes from there would be lost on the copies. "
            "Let the server half return it, as (outputs, penalty), and the loss take "
            "both; a penalty on weights may be the weight_decay of its optimizer"
        )


def _reached(loss_fn: LossFn | None) -> Iterator[Any]:
    """Yield what a loss was given and what its code names, and theirs likewise."""
    waiting: list[Any] = [loss_fn]
    # the objects, too: the id of one that is gone may be another's
    seen: dict[tuple[int, int], Any] = {}
    while waiting:
        held = waiting.pop()
        key = _identity(held)
        if key not in seen:
            seen[key] = held
            yield held
            if ismethod(held):
                yield held.__self__
            waiting += _held_by(held)


def _identity(held: Any) -> tuple[int, int]:
    # a method is a new object each time that it is looked up
    if ismethod(held):
        return id(held.__func__), id(held.__self__)
    return id(held), 0


def _held_by(held: Any) -> Iterable[Any]:
    if isinstance(held, partial):
        return [held.func, *held.args, *held.keywords.values()]
    if isinstance(held, Mapping):
        return list(held.values())
    if isinstance(held, list | tuple | set):
        return held
    if ismethod(held) and isfunction(held.__func__):
        names = _loaded(held.__func__.__code__, _ATTRIBUTE)
        return [held.__func__, *_attributes(held.__self__, names)]
    if isfunction(held):
        return _held_by_function(held)
    # an object that is called
    name = "forward" if isinstance(held, nn.Module) else "__call__"
    called = getattr_static(type(held), name, None)
    return [MethodType(called, held)] if isfunction(called) else []


def _held_by_function(function: FunctionType) -> Iterator[Any]:
    # torch's own reach nothing of a user's
    if (function.__module__ or "").startswith("torch."):
        return
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    for cell in function.__closure__ or ():
        # a name that has no value yet
        with suppress(ValueError):
            yield cell.cell_contents
    for name in _loaded(function.__code__, _GLOBAL):
        yield function.__globals__.get(name)


def _attributes(owner: Any, names: Iterable[str]) -> Iterator[Any]:
    """Yield attributes of an object and methods of its class, but run no property."""
    values = dict(getattr(owner, "__dict__", {}))
    for part in _PARTS_OF_MODULES:
        values.update(values.get(part, {}))
    for name in names:
        method = getattr_static(type(owner), name, None)
        if name in values:
            yield values[name]
        elif isfunction(method):
            yield MethodType(method, owner)


def _loaded(code: CodeType, operations: Iterable[str]) -> set[str]:
    """Return the names that code loads, and the functions that are made in it."""
    steps = dis.get_instructions(code)
    names = {str(step.argval) for step in steps if step.opname in operations}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _loaded(constant, operations)
    return names
