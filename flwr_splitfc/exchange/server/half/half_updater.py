"""The updates of a server half: its gradients become steps of its optimizer."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from logging import getLogger
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from flwr_splitfc.exchange.protocol.optimizer_inputs import (
    check_state,
    in_layout_of,
    lay_out_state,
    step_without_gradient,
    stepped_copy,
)
from flwr_splitfc.exchange.server.half.half_guard import HalfGuard, WeightsRefused
from flwr_splitfc.exchange.server.half.half_randomness import HalfRandomness
from flwr_splitfc.exchange.server.half.step_checks import check_finite
from flwr_splitfc.exchange.server.half.step_undo import StepUndo
from flwr_splitfc.model.structures import Structure

logger = getLogger("flwr")


class HalfUpdater:
    """Accumulates the gradients of a server half, and steps its optimizer by them.

    Its caller lets one in at a time.

    Parameters
    ----------
    model : nn.Module
    optimizer : torch.optim.Optimizer
        Over parameters of the model.
    scheduler : LRScheduler, optional
        The optimizer's, stepped after it.
    undo : StepUndo
        Of these three.
    guard : HalfGuard
        Refuses weights that cannot be trained any more.
    randomness : HalfRandomness
        What an optimizer that is not torch's own draws from.
    accumulate_steps : int
        Mini-batches whose gradients are averaged into one optimizer step.
    max_grad_norm : float, optional
        Clips the total norm of each optimizer step's gradient.

    Attributes
    ----------
    steps : int
        Mini-batches so far.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: LRScheduler | None,
        *,
        undo: StepUndo,
        guard: HalfGuard,
        randomness: HalfRandomness,
        accumulate_steps: int,
        max_grad_norm: float | None,
    ) -> None:
        self.steps = 0
        self._model = model
        self.optimizer = optimizer
        self.scheduler = scheduler
        self._undo = undo
        self._guard = guard
        self._randomness = randomness
        self.accumulate_steps = accumulate_steps
        self.max_grad_norm = max_grad_norm
        self._parameters = [p for p in model.parameters() if p.requires_grad]

    def apply(
        self, grads: Sequence[Tensor | None], features: Structure, batches: int
    ) -> None:
        """Apply a gradient by the weights, whole or not at all.

        Parameters
        ----------
        grads : sequence of Tensor or None
        features : structure of Tensor of shape (B, ...)
            On which weights that have grown are tried out.
        batches : int
            How many mini-batches it is of; 0 if it is of one of before, and moves no
            scheduler.

        Raises
        ------
        StepRefused
        """
        with self._undo.as_a_whole(updates=True):
            check_finite("the gradient by the weights", grads)
            accumulated = any(p.grad is not None for p in self._parameters)
            try:
                self._apply(grads, features, batches)
            except WeightsRefused:
                if not accumulated:
                    raise
                self._drop_accumulated()
                self._apply(grads, features, batches)
                logger.warning(
                    "The gradients that were accumulated before a step would leave "
                    "the server half with weights that cannot be trained any more. "
                    "They are left out of its optimizer step"
                )
        self.steps += batches

    def _drop_accumulated(self) -> None:
        """Go back to before the step, and forget the gradients of those before it."""
        self._undo.restore_weights()
        # again, with these gradients: what is saved can be restored once
        self._undo.save_weights()
        for parameter in self._parameters:
            parameter.grad = None

    def _apply(
        self, grads: Sequence[Tensor | None], features: Structure, batches: int
    ) -> None:
        """Accumulate a gradient, and take the optimizer's step if it is due."""
        with self._update_rng():
            self._accumulate(grads)
            if (self.steps + 1) % self.accumulate_steps == 0:
                self._step_optimizer()
                if batches and self.scheduler is not None:
                    self.scheduler.step()
        self._guard.check_weights(features, self._undo.saved_weights)

    def _stepped(self) -> list[Tensor]:
        """Return the weights that the optimizer steps; a scheduler may add some."""
        groups = self.optimizer.param_groups
        own = set(chain.from_iterable(group["params"] for group in groups))
        return [parameter for parameter in self._parameters if parameter in own]

    def _accumulate(self, grads: Sequence[Tensor | None]) -> None:
        stepped = set(self._stepped())
        for parameter, found in zip(self._parameters, grads, strict=True):
            # nobody would set it to zero
            if parameter not in stepped:
                continue
            grad = None if found is None else in_layout_of(parameter, found)
            # never in place: `StepUndo` holds the gradients of before
            if grad is None:
                parameter.grad = _cloned(parameter.grad)
            elif parameter.grad is not None:
                parameter.grad = parameter.grad + grad
            else:
                # nor that of the step, which may be applied once more
                parameter.grad = _cloned(grad) if self.accumulate_steps > 1 else grad

    def _step_optimizer(self) -> None:
        if self.accumulate_steps > 1:
            for parameter in self._parameters:
                if parameter.grad is not None:
                    parameter.grad /= self.accumulate_steps
        if self.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self._stepped(), self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _update_rng(self) -> AbstractContextManager[None]:
        # Devices go on meanwhile, and in a simulation of one process they may draw from
        # the same generator: it is left alone where the optimizer is known not to draw.
        if type(self.optimizer).__module__.startswith("torch.optim."):
            return nullcontext()
        return self._randomness.of_step(self.steps)

    def end(self) -> None:
        """Drop what only further updates need."""
        self._model.zero_grad()
        self.optimizer.state.clear()
        self._undo.forget()

    def state_dict(self) -> dict[str, Any]:
        """Return optimizer, scheduler, gradients that are not applied yet, steps."""
        schedule = self.scheduler.state_dict() if self.scheduler else None
        return {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": schedule,
            "gradients": [p.grad for p in self._parameters],
            "steps": self.steps,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        gradients = state["gradients"]
        stepped = set(self._stepped())
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            # earlier versions kept those of weights that are not stepped, too
            if gradient is None or parameter not in stepped:
                parameter.grad = None
            else:
                stored = gradient.to(parameter.device)
                parameter.grad = in_layout_of(parameter, stored)
        self.steps = state["steps"]

    def try_optimizer(self, fresh: torch.optim.Optimizer) -> None:
        """Make a step of the optimizer, whose state must be like a fresh one's.

        It is taken back. Raises what the optimizer does if it cannot.
        """
        with self._update_rng():
            stepped = stepped_copy(fresh)
        if stepped is not None:
            check_state(self.optimizer, stepped)
        lay_out_state(self.optimizer)
        self._undo.save_buffers()
        self._undo.save_weights()
        try:
            with self._update_rng():
                step_without_gradient(self.optimizer, _sparse_weights(self._model))
        finally:
            self._undo.restore()


def _cloned(gradient: Tensor | None) -> Tensor | None:
    return None if gradient is None else gradient.clone()


def _sparse_weights(model: nn.Module) -> set[Tensor]:
    """Return the weights whose gradients are sparse."""
    return {
        module.weight
        for module in model.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse
    }
