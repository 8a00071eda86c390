"""The functions that users give, as types."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

LossFn = Callable[[Tensor, Tensor], Tensor]
"""``loss_fn(outputs, labels)`` gives a scalar."""

OptimizerFn = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
"""``optimizer(parameters)`` makes an optimizer."""

SchedulerFn = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]
"""``scheduler(optimizer)`` makes a learning-rate scheduler."""
