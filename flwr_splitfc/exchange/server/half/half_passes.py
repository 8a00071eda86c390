"""The passes of a server half in training: forward from features, and back to them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from flwr_splitfc.exchange.protocol.optimizer_inputs import with_own_memory
from flwr_splitfc.exchange.protocol.split_errors import FeaturesRefused
from flwr_splitfc.exchange.server.half.half_guard import HalfGuard
from flwr_splitfc.exchange.server.half.step_checks import check_finite
from flwr_splitfc.model.stand_ins import call_with
from flwr_splitfc.model.structures import (
    Structure,
    float_tensors,
    leaves_of,
    mapped,
    on_device,
    shapes_of,
)

_Made = TypeVar("_Made")

_Grads = list[Tensor | None]
"""By weights or leaves; None by what a result does not depend on."""


class HalfPasses:
    """Makes the forward and backward passes of a server half.

    They change nothing of it but its buffers. Its caller lets one in at a time, and
    seeds what they draw.

    Parameters
    ----------
    model : nn.Module
        In training mode.
    device : torch.device
        Where the model is.
    guard : HalfGuard
        Refuses buffers that are not finite any more.
    """

    def __init__(
        self, model: nn.Module, device: torch.device, guard: HalfGuard
    ) -> None:
        self._model = model
        self._device = device
        self._guard = guard
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        # of the model into its features; not known before the first pass
        self._writes: bool | None = None

    def leaves(self, features: Structure, wanted: Sequence[bool] | None) -> Structure:
        """Return the features on the half's device, as the leaves of a graph.

        `wanted` says of each floating point tensor whether its gradient is; by default
        all are.
        """
        x = on_device(features, self._device)
        tensors = float_tensors(x)
        if wanted is None:
            wanted = [True] * len(tensors)
        for tensor, is_wanted in zip(tensors, wanted, strict=True):
            tensor.requires_grad_(is_wanted)
        return x

    def again_if_it_writes(self, make: Callable[[], _Made]) -> _Made:
        """Return what `make` does, made again if the half first writes into features.

        It may do so in few batches, as where it fills a padding. torch refuses to write
        into leaves, so from then on the half gets copies.
        """
        try:
            return make()
        except FeaturesRefused as refusal:
            if self._writes is not False or "in-place" not in str(refusal):
                raise
        self._writes = True
        return make()

    def run(self, x: Structure) -> Any:
        """Return the output for features of shape (B, ...).

        Raises
        ------
        FeaturesRefused
            The half does not take the features; likewise below.
        """
        return self.run_as(self._model, x)

    def run_as(self, model: Callable[[Structure], Any], x: Structure) -> Any:
        """Return ``model(x)``, the half's output with other weights or buffers."""
        # it visits each module, which takes as long as a small layer
        if not self._model.training:
            self._model.train()
        # always lists and dicts of its own: a model may put others in, or take some out
        given_leaf = _itself if self._writes is False else _copied
        given = mapped(x, given_leaf)
        written = leaves_of(given) if self._writes is None else []
        try:
            output = model(given)
        except Exception as error:
            raise FeaturesRefused(
                f"the server half does not take features {shapes_of(x)}: {error}"
                + _advice_on_type(self._model)
            ) from error
        if self._writes is None:
            self._writes = any(_was_written(leaf) for leaf in written)
        return output

    def run_aside(self, x: Structure) -> tuple[Any, dict[str, Tensor]]:
        """Return the output, and buffers as the pass leaves them; the half's stay."""
        # Not the model's own buffers: to put them back would invalidate the graph of
        # another session's pass.
        buffers = {name: buffer.clone() for name, buffer in self._model.named_buffers()}

        def model(features: Structure) -> Any:
            return call_with(self._model, buffers, features)

        return self.run_as(model, x), buffers

    @torch.no_grad()
    def take_buffers(self, buffers: Mapping[str, Tensor]) -> None:
        """Make the half's buffers what `run_aside` returned."""
        for name, buffer in self._model.named_buffers():
            buffer.copy_(buffers[name])

    def predict(self, features: Structure) -> Any:
        """Return the output for features of shape (B, ...), in evaluation mode."""
        was_training = self._model.training
        self._model.eval()
        try:
            return self._model(on_device(features, self._device))
        except Exception as error:
            raise FeaturesRefused(
                f"the server half does not take {shapes_of(features)}: {error}"
                + _advice_on_type(self._model)
            ) from error
        finally:
            self._model.train(was_training)

    def back(
        self, out: Tensor, x: Structure, out_grad: Tensor | None = None
    ) -> tuple[list[Tensor], _Grads]:
        """Go back from a loss, or from an output with its gradient.

        Returns the gradients by the leaves in `x`, on the CPU, and those by weights;
        the latter alone if `x` is None.

        Raises
        ------
        StepRefused
            Numbers have run away; likewise below.
        """
        leaves = [tensor for tensor in float_tensors(x) if tensor.requires_grad]
        x_grads, grads = self._gradients(out, leaves, out_grad)
        # alone: nobody waits for the check of the others
        check_finite("the gradient by the features", x_grads)
        self._guard.check_buffers()
        sent = [_to_send(*pair) for pair in zip(leaves, x_grads, strict=True)]
        return sent, grads

    def back_together(
        self, losses: Sequence[Tensor], leaves: Sequence[Tensor]
    ) -> tuple[list[list[Tensor]], _Grads]:
        """Go back from the loss of each batch to the leaf of each.

        Returns each batch's gradients, on the CPU, and the mean of those by weights.
        """
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        # of the sum: a batch's features are in no other batch's loss
        total = torch.stack(list(losses)).sum()
        x_grads, grads = self._gradients(total, wanted)
        self._guard.check_buffers()
        sent: list[list[Tensor]] = []
        for leaf in leaves:
            if not leaf.requires_grad:
                sent.append([])
                continue
            x_grad = x_grads.pop(0)
            check_finite("the gradient by the features", [x_grad])
            sent.append([_to_send(leaf, x_grad)])
        means: _Grads = []
        for grad in grads:
            mean = None if grad is None else grad / len(losses)
            means.append(mean)
        return sent, means

    def _gradients(
        self, out: Tensor, leaves: Sequence[Tensor], out_grad: Tensor | None = None
    ) -> tuple[_Grads, _Grads]:
        """Return gradients by leaves and by weights, each with memory of its own."""
        found = torch.autograd.grad(
            out, [*leaves, *self._parameters], out_grad, allow_unused=True
        )
        gradients = with_own_memory(found)
        return gradients[: len(leaves)], gradients[len(leaves) :]


def _advice_on_type(model: nn.Module) -> str:
    types = {p.dtype for p in model.parameters() if p.is_floating_point()}
    if not types or torch.float32 in types:
        return ""
    return f" (features arrive as float32: features.to({types.pop()}) in its forward)"


def _itself(leaf: Any) -> Any:
    return leaf


def _copied(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def _was_written(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf._version > 0


def _to_send(leaf: Tensor, gradient: Tensor | None) -> Tensor:
    """Return the gradient by a leaf, on the CPU."""
    # a server half may ignore its input
    there = torch.zeros_like(leaf) if gradient is None else gradient
    return there.cpu()
