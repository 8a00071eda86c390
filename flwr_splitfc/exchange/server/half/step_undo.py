"""A copy of all that a training step changes, to go back to if the step fails."""

from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from flwr_splitfc.exchange.protocol.split_errors import SplitError, StepRefused

_Key = TypeVar("_Key", bound=Hashable)

_StateByKey: TypeAlias = dict[str, Any]

_Place: TypeAlias = tuple[nn.Module, str]
"""Of a buffer: the module that has it, and its name there."""

# what a copy of is the thing itself
_UNCHANGING = (int, float, bool, str, type(None))


class StepUndo:
    """Goes back to weights, buffers, optimizer, scheduler and gradients as they were.

    They are saved in two parts, each before a step first changes it. The copy takes as
    much memory as they do. It is used again in each step, and going back allocates none
    for weights and buffers, or it could fail where a step failed for want of memory.

    Parameters
    ----------
    model : nn.Module
        Its modules and weights stay the same objects: those of a new module would be
        none of the optimizer's.
    optimizer : torch.optim.Optimizer
        Over parameters of the model.
    scheduler : LRScheduler, optional
        The optimizer's.

    Attributes
    ----------
    changes : int
        How often the half's tensors were written: by steps, and by undoing them.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: LRScheduler | None,
    ) -> None:
        # once: to walk over a model in each step takes as long as a small layer
        self._modules = list(model.modules())
        self._parameters = list(model.parameters())
        # embeddings whose forward pass writes into their weight
        self._renormed = [
            module
            for module in self._modules
            if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm
        ]
        self._optimizer = optimizer
        # torch's own `state_dict` tells of `state` alone
        told = getattr(type(optimizer), "state_dict", None)
        self._may_wrap = told is not torch.optim.Optimizer.state_dict
        self._scheduler = scheduler
        self.changes = 0
        self.forget()

    def forget(self) -> None:
        """Drop the copy."""
        self._has_weights = False
        self._weights: dict[int, Tensor] = {}
        self._buffers: dict[_Place, Tensor] = {}
        self._gradients: list[Tensor | None] = []
        self._state: dict[Tensor, _StateByKey] = {}
        self._settings: list[_StateByKey] = []
        self._wraps = False
        self._told: _StateByKey = {}
        self._schedule: _StateByKey = {}

    @contextmanager
    def as_a_whole(self, *, updates: bool = False) -> Iterator[None]:
        """Undo what fails of a step, and refuse it, whatever it fails of.

        Parameters
        ----------
        updates : bool
            Whether weights are updated; before, a step changes nothing but buffers.

        Raises
        ------
        SplitError
        """
        if updates:
            self.save_weights()
        else:
            self.save_buffers()
        try:
            yield
            self.changes += 1
        except Exception as error:
            self.changes += 1
            self.restore()
            if isinstance(error, SplitError):
                raise
            raise StepRefused(
                "the server half cannot apply the step: "
                f"{type(error).__name__}: {error}"
            ) from error

    def save_buffers(self) -> None:
        """Copy what a step changes before its gradient is known."""
        self._buffers = _copied(self._buffers_now(), self._buffers)
        self._has_weights = False

    def save_weights(self) -> None:
        """Copy what it changes afterwards."""
        self._weights = _copied(dict(enumerate(self._parameters)), self._weights)
        # by reference: a step replaces gradients, and does not change them
        self._gradients = [weight.grad for weight in self._parameters]
        self._state = {
            weight: _copied(state, self._state.get(weight, {}))
            for weight, state in self._optimizer.state.items()
        }
        self._settings = [_settings_of(group) for group in self._optimizer.param_groups]
        # before its first step, no optimizer tells where its state will be
        optimizer = self._optimizer
        self._wraps = self._may_wrap and (not optimizer.state or _tells_more(optimizer))
        if self._wraps:
            self._told = deepcopy(optimizer.state_dict())
        if self._scheduler is not None:
            self._schedule = deepcopy(self._scheduler.state_dict())
        self._has_weights = True

    def saved_weights(self) -> list[Tensor]:
        """Return copies of the weights that train, as of the last `save_weights`."""
        return [
            self._weights[place].clone().requires_grad_()
            for place, weight in enumerate(self._parameters)
            if weight.requires_grad
        ]

    @torch.no_grad()
    def restore(self) -> None:
        """Make all what it was at the last `save_buffers`."""
        self._restore_buffers()
        if self._has_weights:
            self.restore_weights()

    def _buffers_now(self) -> dict[_Place, Tensor]:
        buffers: dict[_Place, Tensor] = {
            (module, name): buffer
            for module in self._modules
            for name, buffer in module._buffers.items()
            if buffer is not None
        }
        for module in self._renormed:
            buffers[module, "weight"] = module.get_parameter("weight")
        return buffers

    def _restore_buffers(self) -> None:
        buffers = self._buffers_now()
        for (module, name), saved in self._buffers.items():
            buffer = buffers.pop((module, name), None)
            if buffer is not None and _alike(buffer, saved):
                buffer.copy_(saved)
            else:
                # a cache that has grown with the batch, for one
                setattr(module, name, saved.clone())
        # those that were not there
        for module, name in buffers:
            setattr(module, name, None)

    @torch.no_grad()
    def restore_weights(self) -> None:
        """Make all but buffers what it was at the last `save_weights`, once."""
        for place, weight in enumerate(self._parameters):
            weight.copy_(self._weights[place])
            weight.grad = self._gradients[place]
        wraps = self._wraps and _tells_more(self._optimizer)
        # the copies themselves: the next `save_weights` makes new ones
        self._optimizer.state.clear()
        self._optimizer.state.update(self._state)
        self._state = {}
        for group, settings in zip(
            self._optimizer.param_groups, self._settings, strict=True
        ):
            # a step may put some there
            weights = group["params"]
            group.clear()
            group.update(settings, params=weights)
        if wraps:
            self._optimizer.load_state_dict(self._told)
        if self._scheduler is not None:
            self._scheduler.load_state_dict(self._schedule)


def _copied(values: Mapping[_Key, Any], earlier: Mapping[_Key, Any]) -> dict[_Key, Any]:
    """Copy values, into the tensors of an earlier copy where they fit."""
    return {
        key: value if type(value) in _UNCHANGING else _copy(value, earlier.get(key))
        for key, value in values.items()
    }


def _copy(value: Any, earlier: Any) -> Any:
    if not isinstance(value, Tensor):
        return deepcopy(value)
    value = value.detach()
    if isinstance(earlier, Tensor) and _alike(value, earlier):
        return earlier.copy_(value)
    return value.clone()


def _tells_more(optimizer: torch.optim.Optimizer) -> bool:
    """Whether its `state_dict` tells of state that is not in its `state`.

    So does one that wraps another and leaves the state to that.
    """
    own = {id(values) for values in optimizer.state.values()}
    told = optimizer.state_dict().get("state")
    return told is None or any(id(values) not in own for values in told.values())


def _alike(one: Tensor, other: Tensor) -> bool:
    return (one.shape, one.dtype, one.device) == (
        other.shape,
        other.dtype,
        other.device,
    )


def _settings_of(group: _StateByKey) -> _StateByKey:
    """Copy the settings of a parameter group, such as its learning rate."""
    settings = {key: value for key, value in group.items() if key != "params"}
    return _copied(settings, {})
