"""What optimizers with fused kernels ask of gradients and state.

With ``fused=True`` torch goes over a parameter, its gradient and its state as over rows
of memory, as many entries as the parameter has. State of one entry is read beyond its
end, and entries that are stored in another order are taken for others. What
`torch.Tensor.backward` leaves fits; what `torch.autograd.grad` returns, and what comes
from outside, may not.
"""

from copy import deepcopy

import torch
from torch import Tensor

from flwr_splitfc.codec import PayloadError


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


def lay_out_state(optimizer: torch.optim.Optimizer) -> None:
    """Store the state that has a parameter's shape in the parameter's order."""
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                state[key] = in_layout_of(parameter, value)


def stepped_copy(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer | None:
    """Copy an optimizer, parameters and all, and take a step without a gradient.

    Parameters
    ----------
    optimizer : Optimizer
        Whose state is its own, or none.

    Returns
    -------
    Optimizer or None
        None if it takes none: some want a closure.
    """
    copy = deepcopy(optimizer)
    try:
        step_without_gradient(copy)
    except Exception:
        return None
    return copy


def step_without_gradient(optimizer: torch.optim.Optimizer) -> None:
    """Make a step with gradients of zero."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
    optimizer.step()


def check_state_shapes(
    optimizer: torch.optim.Optimizer, stepped: torch.optim.Optimizer
) -> None:
    """Refuse state in another shape than the optimizer's own.

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
    state = optimizer.state_dict()["state"]
    for index, own_values in stepped.state_dict()["state"].items():
        values = state.get(index, {})
        for key, own in own_values.items():
            value = values.get(key, own)
            if _shape(value) != _shape(own):
                raise PayloadError(
                    f"optimizer state '{index}.{key}' has shape {_shape(value)}, "
                    f"the optimizer's own has {_shape(own)}"
                )


def _shape(value: object) -> tuple[int, ...]:
    # of a number, too: some optimizers count in one, and what travels is a tensor
    return tuple(value.shape) if isinstance(value, Tensor) else ()
