"""What keeps a half fit for training: finite buffers, weights that do not run away."""

from collections.abc import Callable, Sequence
from math import isfinite, nan
from typing import Any

from torch import Tensor, nn

from flwr_splitfc.exchange.protocol.split_errors import StepRefused
from flwr_splitfc.exchange.server.half.step_checks import (
    MOST_NEXT_NORM,
    check_buffers,
    finite_buffers,
    next_norm,
    total_norm,
)
from flwr_splitfc.model.stand_ins import call_with
from flwr_splitfc.model.structures import Structure, float_tensors, is_float, mapped

_GROWTH = 2.0
"""How often the weights' norm may grow before the half is tried out."""

Run = Callable[[Callable[[Structure], Any], Structure], Any]
"""``run(model, features)`` is a forward pass in training mode, as the next step's."""


class WeightsRefused(StepRefused):
    """The step would leave weights that cannot be trained any more."""


class HalfGuard:
    """Refuses a step after which a half could not be trained any more.

    Parameters
    ----------
    model : nn.Module
    run : callable
        ``run(model, features)`` is a forward pass as the next step would make it.
    """

    def __init__(self, model: nn.Module, run: Run) -> None:
        self._model = model
        self._run = run
        named = model.named_parameters()
        self._weights = {name: p for name, p in named if p.requires_grad}
        self.take_as_good()

    def take_as_good(self) -> None:
        """Take weights and buffers as they are now for good: checks start from them."""
        self._finite_buffers = finite_buffers(self._model)
        self._checked_norm = max(self._norm(), 1.0)

    def check_buffers(self) -> None:
        """Raise `StepRefused` if a buffer is not finite any more."""
        check_buffers(self._model, self._finite_buffers)

    def check_weights(
        self, features: Structure, weights_before: Callable[[], Sequence[Tensor]]
    ) -> None:
        """Raise `WeightsRefused` if weights have run away.

        To try that costs as much as a step, so it is done when the weights have grown
        twofold since the last time, which is seldom.

        Parameters
        ----------
        features : structure of Tensor
            Of the step that was made.
        weights_before : callable
            Returns the weights before that step.
        """
        norm = self._norm()
        # NaN is not at most anything
        if norm <= _GROWTH * self._checked_norm:
            return
        probe = mapped(features, _at_most_one)
        after = self._next_norm(probe, list(self._weights.values()))
        if not after <= MOST_NEXT_NORM:
            # a half that takes no such features gives NaN before and after
            before = self._next_norm(probe, weights_before())
            if isfinite(after) or isfinite(before):
                raise WeightsRefused(
                    "the step would leave weights that cannot be trained any more: "
                    f"a gradient of norm {after:.3g}, and at most "
                    f"{MOST_NEXT_NORM:g} is wanted"
                )
        self._checked_norm = norm

    def _norm(self) -> float:
        return total_norm([weight.detach() for weight in self._weights.values()])

    def _next_norm(self, probe: Structure, weights: Sequence[Tensor]) -> float:
        """Return the norm of a next step's gradient; NaN if it cannot be tried."""
        buffers = {name: buffer.clone() for name, buffer in self._model.named_buffers()}
        state = {**dict(zip(self._weights, weights, strict=True)), **buffers}

        def model(features: Structure) -> Any:
            return call_with(self._model, state, features)

        try:
            output = self._run(model, probe)
            return next_norm(output, [*float_tensors(probe), *weights])
        # a half may give what has no gradient, or check its numbers by itself
        except Exception:
            return nan


def _at_most_one(tensor: Tensor) -> Tensor:
    """Scale a floating point tensor down to entries of at most 1, as a leaf."""
    if not is_float(tensor):
        return tensor
    largest = tensor.abs().max().clamp(min=1.0)
    return (tensor / largest).requires_grad_()
