"""The functions that users give, and a loss beside a model."""

from collections.abc import Callable, Iterable
from copy import deepcopy
from itertools import chain

import torch
from torch import Tensor, nn

LossFn = Callable[[Tensor, Tensor], Tensor]
"""``loss_fn(outputs, labels)`` gives a scalar."""

OptimizerFn = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
"""``optimizer(parameters)`` makes an optimizer."""

SchedulerFn = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]
"""``scheduler(optimizer)`` makes a learning-rate scheduler."""


def loss_on(device: torch.device, loss_fn: LossFn | None) -> LossFn | None:
    """Return a loss whose tensors, such as weights of classes, are on a device.

    It is a copy if they were elsewhere: its user may need it there.
    """
    if not isinstance(loss_fn, nn.Module):
        return loss_fn
    # with its index, as those of tensors
    wanted = torch.empty(0, device=device).device
    tensors = chain(loss_fn.parameters(), loss_fn.buffers())
    if all(tensor.device == wanted for tensor in tensors):
        return loss_fn
    return deepcopy(loss_fn).to(device)
