"""The device half's optimizer state as tensors that travel."""

from collections.abc import Container, Iterable, Mapping, Sequence
from copy import deepcopy
from logging import getLogger
from typing import Any

import torch
from torch import Tensor, nn

from flwr_splitfc.codec import PayloadError
from flwr_splitfc.codec.model_arrays import EXACT_BITS
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.optimizer_inputs import (
    check_state,
    check_state_entries,
    lay_out_state,
    step_without_gradient,
    stepped_copy,
)
from flwr_splitfc.exchange.protocol.tensors import pack_state, unpack_tensors

_MOST_ENTRY = 1e18
"""Of weights: the server refuses a reply with larger ones."""

_MOST_GROWTH = 1e6
"""Of the largest weight, or of 1 if that is more, by the first steps of a turn."""

_MAXIMA = ("exp_inf", "max_exp_avg_sq")
"""State of Adamax, and of AMSGrad: what was largest so far.

A code that is right on average is too large in a maximum of many codes.
"""

logger = getLogger("flwr")


def trained_places(optimizer: torch.optim.Optimizer) -> list[int]:
    """Return which of an optimizer's parameters train now, by their places among all.

    A turn numbers state by those that train when it begins, as the turn before did: a
    loop may freeze some of them and train others meanwhile.
    """
    return list(_trained(_parameters(optimizer)))


def pack_optimizer(
    optimizer: torch.optim.Optimizer,
    bits: int,
    seed: int,
    places: Sequence[int] | None = None,
) -> list[pb.Tensor]:
    """Return the optimizer's state in wire form, at so many bits an entry.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
    bits : int
    seed : int
        Of the turn: a turn that is repeated leaves the same bytes.
    places : sequence of int, optional
        As for `optimizer_tensors`.
    """
    if any(group.get("centered") for group in optimizer.param_groups):
        # RMSprop takes one tensor less the square of another for a variance; coded, it
        # would be negative now and then
        bits = EXACT_BITS
    frames = []
    for name, tensor in optimizer_tensors(optimizer, places).items():
        _, _, key = name.partition(".")
        own_bits = EXACT_BITS if key in _MAXIMA else bits
        frames.append(pack_state(name, tensor, own_bits, seed))
    return frames


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, places: Sequence[int] | None = None
) -> dict[str, Tensor]:
    """Return the optimizer's state as a flat dict with keys such as ``"0.exp_avg"``.

    The number is the parameter's among those that train. Settings (learning rate, ...)
    are not state: they stay what the device's own code says.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
    places : sequence of int, optional
        Of the parameters that train, from `trained_places`; default as it is now.
    """
    tensors = {}
    parameters = _parameters(optimizer)
    if places is None:
        places = trained_places(optimizer)
    numbers = {index: number for number, index in enumerate(places)}
    for index, state in optimizer.state_dict()["state"].items():
        # what is of no parameter is the optimizer's own affair
        number = numbers.get(index, index)
        is_frozen = index not in numbers and index in range(len(parameters))
        for key, value in state.items():
            if value is not None and not is_frozen:
                name = f"{number}.{key}"
                tensors[name] = _as_tensor(name, value)
    return tensors


def leaves_state(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer, which has made no step, has state after one."""
    stepped = stepped_copy(optimizer)
    # one that wants a closure may have any
    return stepped is None or bool(optimizer_tensors(stepped))


def _as_tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, int | float):
        return torch.tensor(value, dtype=torch.float64)
    raise TypeError(
        f"optimizer state {name!r} is a {type(value).__name__}, and what goes from "
        "turn to turn are tensors and numbers: set optimizer_state='fresh' in the "
        "strategy, or do not give the session this optimizer"
    )


def start_from_kept(
    optimizer: torch.optim.Optimizer, frames: Sequence[pb.Tensor]
) -> None:
    """Give `optimizer` the state in a message, as `start_from` does.

    More entries than an optimizer over its parameters has are not decoded.
    """
    try:
        shapes = [parameter.shape for parameter in _parameters(optimizer)]
        check_state_entries(frames, shapes)
        tensors = unpack_tensors(frames)
    except Exception as error:
        _warn_of(error)
        return
    start_from(optimizer, tensors)


def start_from(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give `optimizer` the state that a turn before left, perhaps on another device.

    State that does not work is left aside: the optimizer starts afresh, and the log
    says why.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
    tensors : mapping of str to Tensor
        As `optimizer_tensors` returns them.
    """
    trial = deepcopy(optimizer)
    try:
        stepped = stepped_copy(optimizer)
        if stepped is not None:
            _check_names(tensors, optimizer_tensors(stepped))
        # the trial steps in place
        copies = {name: tensor.clone() for name, tensor in tensors.items()}
        restore_optimizer(trial, copies)
        if stepped is not None:
            check_state(trial, stepped)
            _check_first_steps(trial)
    except Exception as error:
        _warn_of(error)
        return
    restore_optimizer(optimizer, tensors)


def _warn_of(error: Exception) -> None:
    logger.warning(
        "The optimizer starts afresh: the state that came does not work: %r", error
    )


def _check_names(tensors: Iterable[str], own: Container[str]) -> None:
    """Refuse what the optimizer has no use for: it would keep it and hand it on."""
    for name in tensors:
        if name not in own:
            raise PayloadError(f"{name!r} is no state of this optimizer")


def _check_first_steps(optimizer: torch.optim.Optimizer) -> None:
    """Refuse state with which the weights run away.

    A momentum moves them without a gradient; a step size, as Adadelta's state has one,
    with it alone.
    """
    before = _largest_entry(optimizer)
    most = min(_MOST_GROWTH * max(before, 1.0), _MOST_ENTRY)
    step_without_gradient(optimizer)
    _step_on_ones(optimizer)
    after = _largest_entry(optimizer)
    # NaN is not at most anything
    if not after <= most:
        raise PayloadError(
            f"the first steps take the largest weight from {before:g} to {after:g}, "
            f"at most {most:g} may be"
        )


def _step_on_ones(optimizer: torch.optim.Optimizer) -> None:
    for parameter in _trained(_parameters(optimizer)).values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def _largest_entry(optimizer: torch.optim.Optimizer) -> float:
    """Return the largest absolute entry of the weights that train; NaN if one is."""
    trained = _trained(_parameters(optimizer)).values()
    weights = [weight.detach() for weight in trained if weight.numel()]
    return float(nn.utils.get_total_norm(weights, torch.inf))


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Give `optimizer` the state of another one over the same parameters.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
    tensors : mapping of str to Tensor
        As `optimizer_tensors` returns them.

    Raises
    ------
    PayloadError
        If the tensors are not the state of such an optimizer.
    """
    trained = _trained(_parameters(optimizer))
    indices = list(trained)
    shapes = [parameter.shape for parameter in trained.values()]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        number, _, key = name.partition(".")
        if not _fits(number, tensor, shapes):
            raise PayloadError(
                f"optimizer state {name!r} of shape {tuple(tensor.shape)} "
                "fits no parameter"
            )
        state.setdefault(indices[int(number)], {})[key] = tensor
    settings = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": settings})
    lay_out_state(optimizer)


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return an optimizer's parameters in the order of its state."""
    return [
        parameter for group in optimizer.param_groups for parameter in group["params"]
    ]


def _trained(parameters: list[Tensor]) -> dict[int, Tensor]:
    """Return the parameters that train, by their index among all."""
    return {
        index: parameter
        for index, parameter in enumerate(parameters)
        if parameter.requires_grad
    }


def _fits(number: str, tensor: Tensor, shapes: list[torch.Size]) -> bool:
    """Whether a tensor is a scalar, as the parameter at `number`, or a mean of it.

    A mean has 1 in place of the sizes that it is over.
    """
    if not number.isdecimal() or int(number) >= len(shapes):
        return False
    shape = shapes[int(number)]
    if tensor.ndim not in (0, len(shape)):
        return False
    return all(size in (1, own) for size, own in zip(tensor.shape, shape, strict=False))
