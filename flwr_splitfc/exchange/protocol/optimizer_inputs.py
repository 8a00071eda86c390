"""What optimizers ask of the gradients and the state that they are given.

With ``fused=True`` torch goes over a parameter, its gradient and its state as over rows
of memory, as many entries as the parameter has. State of one entry is read beyond its
end, and entries that are stored in another order are taken for others. What
`torch.Tensor.backward` leaves fits; what `torch.autograd.grad` returns, and what comes
from outside, may not.
"""

from collections.abc import Container, Iterable, Sequence
from contextlib import suppress
from copy import deepcopy
from functools import partial
from types import FunctionType, MethodType
from typing import Any, cast

import torch
from torch import Tensor

from flwr_splitfc.codec import PayloadError
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.claims import claimed_entries
from flwr_splitfc.exchange.protocol.split_errors import StateRefused

_FUNCTIONS = (FunctionType, MethodType, partial)

TRAIN_MODE = "train_mode"
"""In parameter groups, of optimizers with other weights for evaluation."""

MOST_STATE_TENSORS = 16
"""Of one parameter. Adam has three."""


def in_layout_of(parameter: Tensor, tensor: Tensor) -> Tensor:
    """Return a tensor with its entries stored in the order of the parameter's.

    Parameters
    ----------
    parameter : Tensor
    tensor : Tensor
        Returned as it is, if it is in that order, sparse, or of another shape.
    """
    if tensor.layout is not torch.strided or tensor.shape != parameter.shape:
        return tensor
    if tensor.stride() == parameter.stride():
        return tensor
    laid_out = torch.empty_like(parameter, dtype=tensor.dtype, device=tensor.device)
    return laid_out.copy_(tensor)


def with_own_memory(gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Return gradients of which no two are in the same memory.

    The gradients by two summands are one tensor. An optimizer that writes into the
    one would write into the other, too, which `torch.Tensor.backward` sees to.
    """
    taken: set[int] = set()
    own: list[Tensor | None] = []
    for gradient in gradients:
        if gradient is not None and gradient.layout is torch.strided:
            if gradient.untyped_storage().data_ptr() in taken:
                gradient = gradient.clone()
            taken.add(gradient.untyped_storage().data_ptr())
        own.append(gradient)
    return own


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return an optimizer's parameters in the order of its state."""
    return [
        parameter for group in optimizer.param_groups for parameter in group["params"]
    ]


def state_of(optimizer: torch.optim.Optimizer) -> dict[Any, Any]:
    """Return the state by the places of parameters, as the optimizer tells it.

    Where one optimizer wraps another, `optimizer.state` is not that of the other.
    """
    # who wraps another may tell of it in a way of its own
    return cast(dict[Any, Any], optimizer.state_dict().get("state", {}))


def lay_out_state(optimizer: torch.optim.Optimizer) -> None:
    """Store the state that has a parameter's shape in the parameter's order."""
    state = state_of(optimizer)
    for index, parameter in enumerate(parameters_of(optimizer)):
        values = state.get(index, {})
        for key, value in values.items():
            if isinstance(value, Tensor):
                values[key] = in_layout_of(parameter, value)


def copied(
    optimizer: torch.optim.Optimizer, memo: dict[int, Any] | None = None
) -> torch.optim.Optimizer:
    """Copy an optimizer with its parameters, its state and its attributes.

    torch copies no attributes, and one that wraps another has the other as such.

    Parameters
    ----------
    optimizer : Optimizer
    memo : dict, optional
        What has been copied, as of `copy.deepcopy`.

    Raises
    ------
    TypeError
        If its class never calls `Optimizer.__init__`, as some that wrap another: where
        torch copies one, it changes the class, whose steps fail from then on.
    """
    is_torch_class = isinstance(optimizer, torch.optim.Optimizer)
    if is_torch_class and not hasattr(optimizer, "_optimizer_step_pre_hooks"):
        raise TypeError("its class does not call Optimizer.__init__")
    memo = {} if memo is None else memo
    copy = deepcopy(optimizer, memo)
    for name, value in vars(optimizer).items():
        # A function may go by the original's weights, as what a scheduler puts in place
        # of `step` does.
        if name in vars(copy) or isinstance(value, _FUNCTIONS):
            continue
        copy_value = copied if isinstance(value, torch.optim.Optimizer) else deepcopy
        # who needs what cannot be copied makes no step
        with suppress(Exception):
            vars(copy)[name] = copy_value(value, memo)
    return copy


def stepped_copy(
    optimizer: torch.optim.Optimizer, steps: int = 1
) -> torch.optim.Optimizer | None:
    """Copy an optimizer, parameters and all, and take steps on gradients of one.

    Parameters
    ----------
    optimizer : Optimizer
        Whose state is its own, or none.
    steps : int (default: 1)

    Returns
    -------
    Optimizer or None
        None if it takes none: some want a closure.
    """
    try:
        copy = copied(optimizer)
        make_ready(copy)
        for _ in range(steps):
            step_on_ones(copy)
    except Exception:
        return None
    return copy


def make_ready(optimizer: torch.optim.Optimizer) -> None:
    """Have an optimizer train that may have its weights for evaluation instead.

    So it is with schedulefree's, whose groups have a flag ``train_mode``.
    """
    train = getattr(optimizer, "train", None)
    if callable(train) and any(TRAIN_MODE in one for one in optimizer.param_groups):
        train()


def step_on_ones(optimizer: torch.optim.Optimizer) -> None:
    """Make a step with gradients of one."""
    for parameter in parameters_of(optimizer):
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def step_without_gradient(
    optimizer: torch.optim.Optimizer, sparse: Container[Tensor] = ()
) -> None:
    """Make a step with gradients of zero.

    Parameters
    ----------
    optimizer : Optimizer
    sparse : collection of Tensor
        The parameters whose gradients are sparse.
    """
    for parameter in parameters_of(optimizer):
        if parameter.requires_grad:
            layout = torch.sparse_coo if parameter in sparse else parameter.layout
            parameter.grad = torch.zeros_like(parameter, layout=layout)
    optimizer.step()


def check_state(
    optimizer: torch.optim.Optimizer, stepped: torch.optim.Optimizer
) -> None:
    """Refuse state in another shape than the optimizer's own, or of another kind.

    A step count as a small integer works, until it overflows.

    Parameters
    ----------
    optimizer : Optimizer
        With the state.
    stepped : Optimizer
        The `stepped_copy` of another one over the same parameters.

    Raises
    ------
    PayloadError
    """
    state, own_state = state_of(optimizer), state_of(stepped)
    for index in range(len(parameters_of(stepped))):
        own_values = own_state.get(index, {})
        values = state.get(index, {})
        for key, own in own_values.items():
            value = _as_tensor(values.get(key, own))
            wanted = _as_tensor(own)
            if value.shape != wanted.shape:
                raise PayloadError(
                    f"optimizer state '{index}.{key}' has shape {tuple(value.shape)}, "
                    f"the optimizer's own has {tuple(wanted.shape)}"
                )
            if _kind(value) != _kind(wanted):
                raise PayloadError(
                    f"optimizer state '{index}.{key}' is {value.dtype}, "
                    f"the optimizer's own is {wanted.dtype}"
                )


def check_state_entries(
    frames: Iterable[pb.Tensor], parameters: Iterable[Sequence[int]]
) -> None:
    """Refuse state that claims more entries than any optimizer has.

    Parameters
    ----------
    frames : iterable of pb.Tensor
        Not decoded yet: a few bytes may claim any size.
    parameters : iterable of sequence of int
        The shapes of the parameters, and perhaps of more.

    Raises
    ------
    StateRefused
    """
    entries = sum(claimed_entries(frame.shape) for frame in frames)
    most = MOST_STATE_TENSORS * sum(claimed_entries(shape) + 1 for shape in parameters)
    if entries > most:
        raise StateRefused(
            f"the optimizer state has {entries} entries, at most {most} may be"
        )


def _kind(tensor: Tensor) -> tuple[bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex()


def _as_tensor(value: Any) -> Tensor:
    # some optimizers count in a number, and what travels is a tensor
    return value if isinstance(value, Tensor) else torch.zeros((), dtype=torch.float64)
