"""The device half, run again by the attacker: from guessed inputs to features."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from flwr_splitfc.leakage.evidence import LeftOut
from flwr_splitfc.model.structures import float_tensors


@contextmanager
def replayed(half: nn.Module) -> Iterator[None]:
    """Let a half compute as it did in training, but for what is random.

    Dropout is off. Batch normalisation goes by the batch, if it did: so what is
    replayed has to be whole batches. The half is left as it was.
    """
    modes = {module: module.training for module in half.modules()}
    buffers = {name: buffer.clone() for name, buffer in half.named_buffers()}
    half.eval()
    for module, training in modes.items():
        if isinstance(module, _BatchNorm):
            module.train(training)
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        with torch.no_grad():
            for name, buffer in half.named_buffers():
                buffer.copy_(buffers[name])


def goes_by_batch(half: nn.Module) -> bool:
    """Tell whether features of a sample depend on others of its batch."""
    return any(
        isinstance(module, _BatchNorm) and module.training for module in half.modules()
    )


def features_of(half: nn.Module, inputs: Tensor) -> Tensor:
    """Return the features (B, D) of inputs (B, ...).

    Raises
    ------
    LeftOut
        If the half fails, as on numbers where it wants something else.
    """
    try:
        features = half(inputs)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise LeftOut(f"the device half does not run again: {reason}") from error
    rows = [tensor.flatten(1).float() for tensor in float_tensors(features)]
    return torch.cat(rows, dim=1)
