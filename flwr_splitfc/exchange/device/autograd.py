"""The server half as a node of the device's autograd graph.

The loss of an exchange is ``L(f)`` for features ``f``, and its gradient ``dL/df`` has
come with it: the backward pass multiplies it by the gradient that comes from above.
Where the last layers are the device's, the output is ``g(f)``, and the backward pass
asks the server for ``dL/df`` with ``dL/dg``.
"""

from collections.abc import Callable
from functools import partial
from math import nan
from typing import TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from flwr_splitfc.exchange.device.backward_watch import BackwardWatch
from flwr_splitfc.exchange.device.steps import Gradients, Steps
from flwr_splitfc.exchange.device.u_shaped_steps import BegunStep, UShapedSteps
from flwr_splitfc.model.structures import Structure, float_tensors, rows_of

Begin: TypeAlias = Callable[[], tuple[Tensor, BegunStep]]
"""Asks for an output."""


def server_loss(
    steps: Steps, features: Structure, labels: Tensor, watch: BackwardWatch
) -> Tensor:
    """Return the server half's loss, with a graph down to `features`."""
    check_grad_mode()
    if rows_of(features) == 0:
        return loss_of_no_rows(features, watch)
    loss, gradients = steps.train(features, labels.detach())
    return answered_loss(features, loss, gradients, watch)


def answered_loss(
    features: Structure, loss: float, gradients: Gradients, watch: BackwardWatch
) -> Tensor:
    """Return a loss that the server has answered, with a graph down to `features`.

    Parameters
    ----------
    features : structure of Tensor of shape (B, ...)
    loss : float
    gradients : list of Tensor of shape (B, D), or None
        By the tensors that were encoded; None for those without a graph. Where none has
        one, the loss is a leaf: its ``backward()`` does nothing.
    watch : BackwardWatch
    """
    tensors = float_tensors(features)
    # whatever has a graph was encoded
    wanted = [tensor for tensor in tensors if tensor.requires_grad]
    came = [gradient for gradient in gradients if gradient is not None]
    if not wanted:
        watch.note_no_graph()
        return torch.tensor(loss, device=tensors[0].device, requires_grad=True)
    answered: Tensor = _ServerLoss.apply(loss, came, watch, *wanted)
    return answered


def loss_of_no_rows(features: Structure, watch: BackwardWatch) -> Tensor:
    """Return the loss of an empty mini-batch, which is not sent: a mean of nothing.

    It is NaN, as torch's is, with a graph down to `features`.
    """
    tensors = float_tensors(features)
    # a gradient of no rows has nothing in it, as they have
    gradients: Gradients = [one.detach() for one in tensors if one.requires_grad]
    return answered_loss(features, nan, gradients, watch)


def server_output(
    steps: UShapedSteps,
    features: Structure,
    label_entries: int | None,
    watch: BackwardWatch,
) -> Tensor:
    """Return the server half's output, with a graph down to `features`."""
    check_grad_mode()
    tensors = [one for one in float_tensors(features) if one.requires_grad]
    begin = partial(steps.begin, features, label_entries)
    # features of a frozen half have no graph, and the output needs one
    anchor = torch.empty(0, requires_grad=True)
    output: Tensor = _ServerOutput.apply(begin, steps, watch, anchor, *tensors)
    return output


class _ServerLoss(torch.autograd.Function):
    """The network and the server half, with its loss."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx, loss: float, gradients: list[Tensor], watch: BackwardWatch, *tensors
    ) -> Tensor:
        ctx.watch, ctx.owed = watch, watch.owe()
        kept = []
        for gradient, tensor in zip(gradients, tensors, strict=True):
            dtype = torch.promote_types(gradient.dtype, tensor.dtype)
            kept.append(gradient.reshape(tensor.shape).to(dtype))
        ctx.dtypes = [tensor.dtype for tensor in tensors]
        ctx.save_for_backward(*kept)
        return torch.tensor(loss, dtype=torch.float32, device=tensors[0].device)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
        ctx.watch.settle(ctx.owed)
        # scaled before it is rounded: what a gradient scaler keeps from underflow
        gradients = [
            (grad_output * gradient).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return None, None, None, *gradients


class _ServerOutput(torch.autograd.Function):
    """The network, the server half, and the network."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx,
        begin: Begin,
        steps: UShapedSteps,
        watch: BackwardWatch,
        anchor: Tensor,
        *tensors,
    ) -> Tensor:
        output, ctx.begun = begin()
        ctx.watch, ctx.owed = watch, watch.owe()
        ctx.steps = steps
        ctx.likes = [(tensor.shape, tensor.dtype) for tensor in tensors]
        return output

    @staticmethod
    # the gradient from the server has no graph of its own
    @once_differentiable
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
        ctx.watch.settle(ctx.owed)
        came = ctx.steps.end(grad_output, ctx.begun)
        wanted = [gradient for gradient in came if gradient is not None]
        gradients = []
        for gradient, (shape, dtype) in zip(wanted, ctx.likes, strict=True):
            gradients.append(gradient.reshape(shape).to(dtype))
        return None, None, None, None, *gradients


def check_grad_mode() -> None:
    """Refuse to train where no graph is made.

    Raises
    ------
    RuntimeError
    """
    if not torch.is_grad_enabled():
        raise RuntimeError(
            "server.loss and server.forward train, so they need features with an "
            "autograd graph: not under torch.no_grad(). Use server.predict to evaluate."
        )
