"""The device half's optimizer state as tensors that travel."""

from collections.abc import Container, Iterable, Mapping, Sequence
from logging import getLogger
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from flwr_splitfc.codec import PayloadError
from flwr_splitfc.codec.model_arrays import EXACT_BITS
from flwr_splitfc.exchange.device.state_names import (
    GROUP_PREFIX,
    GroupCount,
    StateNames,
    is_torchs,
    keeps_to_itself,
    may_count,
    trained,
)
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.optimizer_inputs import (
    check_state,
    check_state_entries,
    copied,
    lay_out_state,
    make_ready,
    parameters_of,
    state_of,
    step_on_ones,
    step_without_gradient,
    stepped_copy,
)
from flwr_splitfc.exchange.protocol.tensors import pack_state, unpack_tensors

_MOST_ENTRY = 1e18
"""Of weights: the server refuses a reply with larger ones."""

_MOST_GROWTH = 1e6
"""Of the largest weight, or of 1 if that is more, by the first steps of a turn."""

_MOST_COUNT = 2**53

_MAXIMA = ("exp_inf", "max_exp_avg_sq")
"""State of Adamax, and of AMSGrad: what was largest so far.

A code that is right on average is too large in a maximum of many codes.
"""

_NO_STATE = (
    "set optimizer_state='fresh' in the strategy, or do not give the session this "
    "optimizer"
)

logger = getLogger("flwr")


def check_handed_on(optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer of which no copy can be made, to try state on.

    Raises
    ------
    TypeError
    """
    if is_torchs(optimizer):
        return
    name = type(optimizer).__name__
    try:
        restore_optimizer(copied(optimizer), {}, StateNames([]))
    except Exception as error:
        raise TypeError(
            f"optimizer {name}: the state that a turn leaves is tried on a copy of it, "
            f"and a copy does not work ({error!r}): {_NO_STATE}"
        ) from error
    # half of its state would be worse than none
    if keeps_to_itself(optimizer):
        raise TypeError(
            f"optimizer {name} has state of which its state_dict()['state'] does not "
            f"tell: {_NO_STATE}"
        )


def pack_optimizer(
    optimizer: torch.optim.Optimizer, bits: int, seed: int, names: StateNames
) -> list[pb.Tensor]:
    """Return the optimizer's state in wire form, at so many bits an entry.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
    bits : int
    seed : int
        Of the turn: a turn that is repeated leaves the same bytes.
    names : StateNames
        As for `optimizer_tensors`.
    """
    if any(group.get("centered") for group in optimizer.param_groups):
        # RMSprop takes one tensor less the square of another for a variance; coded, it
        # would be negative now and then
        bits = EXACT_BITS
    frames = []
    for name, tensor in optimizer_tensors(optimizer, names).items():
        _, _, key = name.partition(".")
        own_bits = EXACT_BITS if key in _MAXIMA else bits
        frames.append(pack_state(name, tensor, own_bits, seed))
    return frames


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: StateNames | None = None
) -> dict[str, Tensor]:
    """Return the optimizer's state as a flat dict with keys such as ``"0.exp_avg"``.

    The number is the parameter's among those that train. What the optimizer counts in
    a parameter group goes as a scalar of the group's first one, as ``"0.group.k"``.
    Settings (learning rate, ...) are not state: they stay what the device's own code
    says.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
    names : StateNames, optional
        As of before the optimizer's first step; default as of now.
    """
    tensors = {}
    parameters = parameters_of(optimizer)
    names = names or StateNames.of(optimizer)
    numbers = {index: number for number, index in enumerate(names.places)}
    for index, state in state_of(optimizer).items():
        if not isinstance(state, Mapping):
            raise TypeError(
                f"optimizer state {index!r} is of no parameter: {_NO_STATE}"
            )
        # what is of no parameter is the optimizer's own affair
        number = numbers.get(index, index)
        is_frozen = index not in numbers and index in range(len(parameters))
        for key, value in state.items():
            if value is not None and not is_frozen:
                name = f"{number}.{key}"
                tensors[name] = _as_tensor(name, value)
    return tensors | _counts_of(optimizer, names)


def _counts_of(
    optimizer: torch.optim.Optimizer, names: StateNames
) -> dict[str, Tensor]:
    """Return what the optimizer counts in its groups, where it is not as it began."""
    counts = {}
    for name, count in names.counts.items():
        value = optimizer.param_groups[count.group].get(count.key)
        # what is not finite is refused
        if may_count(value) and isfinite(value) and value != count.began:
            dtype = torch.float64 if isinstance(value, float) else None
            counts[name] = torch.tensor(value, dtype=dtype)
    return counts


def leaves_state(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer, which has made no step, has state after one."""
    stepped = stepped_copy(optimizer)
    # one that wants a closure may have any
    if stepped is None:
        return True
    return bool(optimizer_tensors(stepped, StateNames.of(optimizer)))


def _as_tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, int | float):
        return torch.tensor(value, dtype=torch.float64)
    raise TypeError(
        f"optimizer state {name!r} is a {type(value).__name__}, and what goes from "
        f"turn to turn are tensors and numbers: {_NO_STATE}"
    )


def start_from_kept(
    optimizer: torch.optim.Optimizer,
    frames: Sequence[pb.Tensor],
    names: StateNames | None = None,
) -> None:
    """Give `optimizer` the state in a message, as `start_from` does.

    More entries than an optimizer over its parameters has are not decoded.
    """
    try:
        shapes = [parameter.shape for parameter in parameters_of(optimizer)]
        check_state_entries(frames, shapes)
        tensors = unpack_tensors(frames)
    except Exception as error:
        _warn_of(error)
        return
    start_from(optimizer, tensors, names)


def start_from(
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
    names: StateNames | None = None,
) -> None:
    """Give `optimizer` the state that a turn before left, perhaps on another device.

    State that does not work is left aside: the optimizer starts afresh, and the log
    says why.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Which has made no step.
    tensors : mapping of str to Tensor
        As `optimizer_tensors` returns them.
    names : StateNames, optional
        The optimizer's.
    """
    names = names or StateNames.of(optimizer)
    try:
        trial = copied(optimizer)
        stepped = stepped_copy(optimizer)
        if stepped is not None:
            own = optimizer_tensors(stepped, names)
            _check_names(tensors, own.keys() | names.counts.keys())
        # the trial steps in place
        copies = {name: tensor.clone() for name, tensor in tensors.items()}
        restore_optimizer(trial, copies, names)
        if stepped is not None:
            make_ready(trial)
            check_state(trial, stepped)
            _check_counts(tensors, stepped, names)
            _check_first_steps(trial)
    except Exception as error:
        _warn_of(error)
        return
    restore_optimizer(optimizer, tensors, names)
    make_ready(optimizer)


def _warn_of(error: Exception) -> None:
    logger.warning(
        "The optimizer starts afresh: the state that came does not work: %r. Make "
        "the optimizers of all devices alike, or set optimizer_state='fresh' in the "
        "strategy",
        error,
    )


def _check_names(tensors: Iterable[str], own: Container[str]) -> None:
    """Refuse what the optimizer has no use for: it would keep it and hand it on."""
    for name in tensors:
        if name not in own:
            raise PayloadError(
                f"{name!r} is no state that a first step of this optimizer leaves"
            )


def _check_counts(
    tensors: Mapping[str, Tensor], stepped: torch.optim.Optimizer, names: StateNames
) -> None:
    """Refuse negative counts of steps: a later step comes to 0, and may divide by it.

    Counts are the scalars that a step without gradients raises by one.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        In the shapes of the optimizer's own.
    stepped : torch.optim.Optimizer
        The `stepped_copy` of the optimizer, which makes one more step here.
    names : StateNames
    """
    before = _scalars(optimizer_tensors(stepped, names))
    step_without_gradient(stepped)
    after = _scalars(optimizer_tensors(stepped, names))
    for name, value in _scalars(tensors).items():
        counts = name in before and after.get(name) == before[name] + 1
        if counts and value < min(0, before[name]):
            raise PayloadError(f"optimizer state {name!r} is {value:g}, and a count")


def _scalars(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    return {
        name: tensor.item()
        for name, tensor in tensors.items()
        if tensor.ndim == 0 and not tensor.is_complex()
    }


def _check_first_steps(optimizer: torch.optim.Optimizer) -> None:
    """Refuse state with which the weights run away.

    A momentum moves them without a gradient; a step size, as Adadelta's state has one,
    with it alone.
    """
    before = _largest_entry(optimizer)
    most = min(_MOST_GROWTH * max(before, 1.0), _MOST_ENTRY)
    step_without_gradient(optimizer)
    step_on_ones(optimizer)
    after = _largest_entry(optimizer)
    # NaN is not at most anything
    if not after <= most:
        raise PayloadError(
            f"the first steps take the largest weight from {before:g} to {after:g}, "
            f"at most {most:g} may be"
        )


def _largest_entry(optimizer: torch.optim.Optimizer) -> float:
    """Return the largest absolute entry of the weights that train; NaN if one is."""
    parameters = trained(parameters_of(optimizer)).values()
    weights = [weight.detach() for weight in parameters if weight.numel()]
    return float(nn.utils.get_total_norm(weights, torch.inf))


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], names: StateNames
) -> None:
    """Give `optimizer` the state of another one over the same parameters.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
    tensors : mapping of str to Tensor
        As `optimizer_tensors` returns them.
    names : StateNames
        The optimizer's.

    Raises
    ------
    PayloadError
        If the tensors are not the state of such an optimizer.
    """
    parameters = parameters_of(optimizer)
    shapes = [parameters[place].shape for place in names.places]
    state: dict[int, dict[str, Tensor]] = {}
    groups = optimizer.state_dict()["param_groups"]
    for name, tensor in tensors.items():
        number, _, key = name.partition(".")
        if not _fits(number, tensor, shapes):
            raise PayloadError(
                f"optimizer state {name!r} of shape {tuple(tensor.shape)} "
                "fits no parameter"
            )
        if key.startswith(GROUP_PREFIX):
            count = _count(name, names)
            groups[count.group][count.key] = _counted(name, tensor, count.kind)
        else:
            state.setdefault(names.places[int(number)], {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    lay_out_state(optimizer)


def _count(name: str, names: StateNames) -> GroupCount:
    if name not in names.counts:
        raise PayloadError(f"{name!r} is nothing that this optimizer counts")
    return names.counts[name]


def _counted(name: str, tensor: Tensor, kind: type) -> Any:
    value: Any = tensor.item() if tensor.ndim == 0 else None
    if kind is float:
        is_fit = isinstance(value, int | float) and isfinite(value)
    elif kind is int:
        is_fit = type(value) is int and 0 <= value < _MOST_COUNT
    else:
        is_fit = type(value) is kind
    if not is_fit:
        raise PayloadError(f"optimizer state {name!r} is no fit {kind.__name__}")
    return kind(value)


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
