"""A copy of all that a training step changes, to go back to if the step fails."""

from copy import deepcopy
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

_StateByKey: TypeAlias = dict[str, Any]


class StepUndo:
    """Goes back to weights, buffers, optimizer, scheduler and gradients as they were.

    They are saved in two parts, each before a step first changes it. The copy takes as
    much memory as they do. It is used again in each step, and going back allocates none
    for weights and buffers, or it could fail where a step failed for want of memory.

    Parameters
    ----------
    model : nn.Module
    optimizer : torch.optim.Optimizer
        Over parameters of the model.
    scheduler : LRScheduler, optional
        The optimizer's.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: LRScheduler | None,
    ) -> None:
        self._model = model
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._has_weights = False
        self._weights: dict[str, Tensor] = {}
        self._buffers: dict[str, Tensor] = {}
        self._gradients: list[Tensor | None] = []
        self._state: dict[Tensor, _StateByKey] = {}
        self._settings: list[_StateByKey] = []
        self._schedule: _StateByKey = {}

    @torch.no_grad()
    def save_buffers(self) -> None:
        """Copy what a step changes before its gradient is known."""
        self._buffers = _copied(dict(self._model.named_buffers()), self._buffers)
        self._has_weights = False

    @torch.no_grad()
    def save_weights(self) -> None:
        """Copy what it changes afterwards."""
        weights = dict(self._model.named_parameters())
        self._weights = _copied(weights, self._weights)
        # by reference: a step replaces gradients, and does not change them
        self._gradients = [weight.grad for weight in weights.values()]
        self._state = {
            weight: _copied(state, self._state.get(weight, {}))
            for weight, state in self._optimizer.state.items()
        }
        self._settings = [_settings_of(group) for group in self._optimizer.param_groups]
        if self._scheduler is not None:
            self._schedule = deepcopy(self._scheduler.state_dict())
        self._has_weights = True

    @torch.no_grad()
    def restore(self) -> None:
        """Make all what it was at the last `save_buffers`."""
        self._restore_buffers()
        if self._has_weights:
            self._restore_weights()

    def _restore_buffers(self) -> None:
        buffers = dict(self._model.named_buffers())
        for name, saved in self._buffers.items():
            buffer = buffers.pop(name, None)
            if buffer is not None and _alike(buffer, saved):
                buffer.copy_(saved)
            else:
                # a cache that has grown with the batch, for one
                _set_buffer(self._model, name, saved.clone())
        # those that were not there
        for name in buffers:
            _set_buffer(self._model, name, None)

    def _restore_weights(self) -> None:
        weights = dict(self._model.named_parameters())
        for name, weight in weights.items():
            weight.copy_(self._weights[name])
        for weight, gradient in zip(weights.values(), self._gradients, strict=True):
            weight.grad = gradient
        # the copies themselves: the next `save_weights` makes new ones
        self._optimizer.state.clear()
        self._optimizer.state.update(self._state)
        self._state = {}
        for group, settings in zip(
            self._optimizer.param_groups, self._settings, strict=True
        ):
            group.update(settings)
        if self._scheduler is not None:
            self._scheduler.load_state_dict(self._schedule)


def _set_buffer(model: nn.Module, name: str, buffer: Tensor | None) -> None:
    owner, _, own_name = name.rpartition(".")
    setattr(model.get_submodule(owner), own_name, buffer)


def _copied(values: _StateByKey, earlier: _StateByKey) -> _StateByKey:
    """Copy values, into the tensors of an earlier copy where they fit."""
    return {key: _copy(value, earlier.get(key)) for key, value in values.items()}


def _copy(value: Any, earlier: Any) -> Any:
    if not isinstance(value, Tensor):
        return deepcopy(value)
    if isinstance(earlier, Tensor) and _alike(value, earlier):
        return earlier.copy_(value)
    return value.detach().clone()


def _alike(one: Tensor, other: Tensor) -> bool:
    return (one.shape, one.dtype, one.device) == (
        other.shape,
        other.dtype,
        other.device,
    )


def _settings_of(group: _StateByKey) -> _StateByKey:
    """Copy the settings of a parameter group, such as its learning rate."""
    settings = {key: value for key, value in group.items() if key != "params"}
    return deepcopy(settings)
