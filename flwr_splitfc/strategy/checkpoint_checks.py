"""Checks of what a checkpoint holds, before a run takes it over."""

import json
from collections.abc import Mapping
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from flwr_splitfc.exchange.server.half.half_steps import Update
from flwr_splitfc.strategy.checkpoint import CheckpointError
from flwr_splitfc.strategy.state_tensors import (
    entries_of,
    parts_of,
    stored_bytes,
    tensors_of,
)

_MOST_STEPS = 2**63


def check_sizes(state: Any) -> None:
    """Refuse tensors with more entries than the file has.

    Raises
    ------
    CheckpointError
    """
    for tensor in tensors_of(state):
        for part in parts_of(tensor):
            if part.nbytes > stored_bytes(part):
                raise CheckpointError(
                    f"a tensor of {part.nbytes} bytes has {stored_bytes(part)} in the "
                    "file"
                )


def check_rounds(state: Mapping[str, Any]) -> None:
    """Refuse a round that is not the last one of the history.

    Raises
    ------
    CheckpointError
    """
    last = json.loads(state["history"][-1])["round"]
    done = state["round"]
    if type(done) is not int or done < 0 or done != last:
        raise CheckpointError(f"it is of round {done}, its history ends with {last}")


def check_half(name: str, got: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse entries that are not those of a half in training.

    Parameters
    ----------
    name : str
        The half's, for the message.
    got, wanted : mapping of str to Tensor
        The checkpoint's entries, and those that the half has now: names and shapes are
        the same, and what is finite stays so. Extra state that is no tensor is not
        looked into.

    Raises
    ------
    CheckpointError
    """
    if got.keys() != wanted.keys():
        both = f"{sorted(map(str, got))}, wanted {sorted(wanted)}"
        raise CheckpointError(f"the {name} has {both:.1000}")
    for key, tensor in wanted.items():
        entry = got[key]
        if not isinstance(tensor, Tensor):
            # extra state: only the half itself can tell what is right
            continue
        if not isinstance(entry, Tensor) or _form(entry) != _form(tensor):
            raise CheckpointError(
                f"{key!r} of the {name} is no {tensor.layout} tensor of {tensor.dtype} "
                f"and shape {tuple(tensor.shape)}"
            )
        if not _stays_finite(entry, tensor):
            raise CheckpointError(f"{key!r} of the {name} is not finite")


def check_finite_state(what: str, state: Any) -> None:
    """Refuse NaN in tensors.

    Raises
    ------
    CheckpointError
    """
    for tensor in tensors_of(state):
        if entries_of(tensor).isnan().any():
            raise CheckpointError(f"the {what} is not finite")


def check_steps(steps: Any) -> None:
    """Refuse what is no count of mini-batches.

    Raises
    ------
    CheckpointError
    """
    if type(steps) is not int or not 0 <= steps < _MOST_STEPS:
        raise CheckpointError(f"the server half made {steps!r:.40} steps")


def check_updates(updates: Any) -> None:
    """Refuse entries that are no `Update`.

    Raises
    ------
    CheckpointError
        Or another error, where one has another length.
    """
    for entry in updates:
        server_round, device, step, merged = Update(*entry)
        numbers = (server_round, step, merged)
        are_counts = all(type(each) is int and each > 0 for each in numbers)
        if not are_counts or type(device) is not str:
            raise CheckpointError(
                f"an update is {entry!r:.100}, wanted round, device, step and merged"
            )


def check_settings(what: str, got: Any, wanted: Any) -> None:
    """Refuse settings of an optimizer or a scheduler that are of another kind.

    A tensor where a number belongs may fail many steps later only.

    Parameters
    ----------
    what : str
        For the message.
    got, wanted : Any
        The checkpoint's, and those that are there now. What is there in one of them
        alone is left alone: schedulers note more as they go on.

    Raises
    ------
    CheckpointError
    """
    if isinstance(wanted, Mapping) and isinstance(got, Mapping):
        in_both = wanted.keys() & got.keys()
        for key in in_both:
            check_settings(f"{what}, {key!r}", got[key], wanted[key])
    elif isinstance(wanted, list | tuple) and isinstance(got, list | tuple):
        pairs = zip(got, wanted, strict=False)
        for one, other in pairs:
            check_settings(what, one, other)
    elif isinstance(wanted, int | float):
        _check_number(what, got, wanted)


def check_moments(name: str, got: Any, wanted: Mapping[str, Tensor]) -> None:
    """Refuse what a strategy remembers of a device half, if it is of another one.

    Parameters
    ----------
    name : str
        Of the strategy's attribute, for the message.
    got : Any
        A tensor for each array of the half, by name or in their order; None before the
        first round.
    wanted : mapping of str to Tensor
        The device half.

    Raises
    ------
    CheckpointError
        Or another error, where it has another form.
    """
    if got is None:
        return
    moments = got if isinstance(got, Mapping) else dict(enumerate(got))
    keys = wanted if isinstance(got, Mapping) else range(len(wanted))
    shapes = dict(zip(keys, (tensor.shape for tensor in wanted.values()), strict=True))
    if shapes != {key: moment.shape for key, moment in moments.items()}:
        raise CheckpointError(f"the strategy's {name} is of other arrays")
    check_finite_state(f"strategy's {name}", moments)


def _check_number(what: str, got: Any, wanted: float) -> None:
    if isinstance(got, int | float) and isfinite(got) == isfinite(wanted):
        return
    raise CheckpointError(f"the {what} is {got!r:.40}, wanted a number")


def _form(tensor: Tensor) -> tuple[bool, torch.layout, torch.Size]:
    # not the dtype: strategies average in float64, counts of batches, too
    return tensor.is_complex(), tensor.layout, tensor.shape


def _stays_finite(got: Tensor, wanted: Tensor) -> bool:
    finite = entries_of(got).isfinite()
    was_finite = entries_of(wanted).isfinite()
    # a sparse tensor may store others
    if finite.shape != was_finite.shape:
        was_finite = was_finite.all().expand_as(finite)
    return bool(finite[was_finite].all())
