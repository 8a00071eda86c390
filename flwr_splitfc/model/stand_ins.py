"""A model's forward pass with other tensors in the place of its own."""

from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from flwr_splitfc.model.structures import Structure


def call_with(model: nn.Module, stand_ins: dict[str, Tensor], x: Structure) -> Any:
    """Return ``model(x)`` with stand-ins for some of its weights and buffers.

    The model has its own tensors again afterwards, also if the pass raises.

    Parameters
    ----------
    model : nn.Module
    stand_ins : dict of Tensor
        By the names of `named_parameters` and `named_buffers`. A tensor with several
        names has one stand-in. Where the pass sets a buffer anew, the dict then
        holds what it set.
    x : structure of Tensor
        Of shape (B, ...).
    """
    # Not tie_weights=True: that swaps a module that is registered under two names
    # twice, and leaves the stand-ins in it. Here each module has one name.
    tensors = [
        (f"{prefix}.{name}" if prefix else name, tensor)
        for prefix, module in model.named_modules()
        for own in (module._parameters, module._buffers)
        for name, tensor in own.items()
        if tensor is not None
    ]
    by_tensor = {
        id(tensor): stand_ins[name] for name, tensor in tensors if name in stand_ins
    }
    by_name = {
        name: by_tensor[id(tensor)]
        for name, tensor in tensors
        if id(tensor) in by_tensor
    }
    # a tuple is one argument, too
    output = functional_call(model, by_name, (x,), tie_weights=False)
    stand_ins.update({name: by_name[name] for name in stand_ins})
    return output
