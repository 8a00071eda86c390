"""The device half's optimizer state as tensors that travel."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from flwr_splitfc.codec import PayloadError


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state as a flat dict with keys such as ``"0.exp_avg"``.

    The number is the parameter's. Settings (learning rate, ...) are not state: they
    stay what the device's own code says.
    """
    tensors = {}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if value is not None:
                tensors[f"{index}.{key}"] = _as_tensor(value)
    return tensors


def _as_tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    return torch.tensor(value, dtype=torch.float64)


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
    shapes = [
        parameter.shape
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        if not _fits(index, tensor, shapes):
            raise PayloadError(
                f"optimizer state {name!r} of shape {tuple(tensor.shape)} "
                "fits no parameter"
            )
        state.setdefault(int(index), {})[key] = tensor
    settings = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": settings})


def _fits(index: str, tensor: Tensor, shapes: list[torch.Size]) -> bool:
    """Whether the tensor is a scalar or has the shape of the parameter at `index`."""
    if not index.isdecimal() or int(index) >= len(shapes):
        return False
    return tensor.shape in (shapes[int(index)], ())
