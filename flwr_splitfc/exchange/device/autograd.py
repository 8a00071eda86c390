"""The server half as a node of the device's autograd graph.

The loss of an exchange is ``L(f)`` for features ``f``, and its gradient ``dL/df`` has
come with it: the backward pass multiplies it by the gradient that comes from above.
Where the last layers are the device's, the output is ``g(f)``, and the backward pass
asks the server for ``dL/df`` with ``dL/dg``.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from flwr_splitfc.exchange.device.backward_watch import BackwardWatch
from flwr_splitfc.exchange.device.steps import Steps
from flwr_splitfc.exchange.device.u_shaped_steps import UShapedSteps


def server_loss(
    steps: Steps, features: Tensor, labels: Tensor, watch: BackwardWatch
) -> Tensor:
    """Return the server half's loss, with a graph down to `features`."""
    check_grad_mode()
    loss, gradient = steps.train(features, labels.detach())
    return answered_loss(features, loss, gradient, watch)


def answered_loss(
    features: Tensor, loss: float, gradient: Tensor | None, watch: BackwardWatch
) -> Tensor:
    """Return a loss that the server has answered, with a graph down to `features`.

    Parameters
    ----------
    features : Tensor of shape (B, ...)
    loss : float
    gradient : Tensor of shape (B, D) or None
        By the features; None for those without a graph, whose loss is a leaf: its
        ``backward()`` does nothing.
    watch : BackwardWatch
    """
    if gradient is None:
        return torch.tensor(loss, device=features.device, requires_grad=True)
    answered: Tensor = _ServerLoss.apply(features, loss, gradient, watch)
    return answered


def server_output(
    steps: UShapedSteps, features: Tensor, watch: BackwardWatch
) -> Tensor:
    """Return the server half's output, with a graph down to `features`."""
    _check_graph(features)
    output: Tensor = _ServerOutput.apply(features, steps, watch)
    return output


class _ServerLoss(torch.autograd.Function):
    """The network and the server half, with its loss."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx, features: Tensor, loss: float, gradient: Tensor, watch: BackwardWatch
    ) -> Tensor:
        ctx.watch, ctx.owed = watch, watch.owe()
        ctx.save_for_backward(gradient.reshape(features.shape).to(features.dtype))
        return torch.tensor(loss, dtype=torch.float32, device=features.device)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[no-untyped-def]
        ctx.watch.settle(ctx.owed)
        (gradient,) = ctx.saved_tensors
        return grad_output * gradient, None, None, None


class _ServerOutput(torch.autograd.Function):
    """The network, the server half, and the network."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx, features: Tensor, steps: UShapedSteps, watch: BackwardWatch
    ) -> Tensor:
        output, ctx.begun = steps.begin(features.detach())
        ctx.watch, ctx.owed = watch, watch.owe()
        ctx.steps = steps
        ctx.shape, ctx.dtype = features.shape, features.dtype
        return output

    @staticmethod
    # the gradient from the server has no graph of its own
    @once_differentiable
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[no-untyped-def]
        ctx.watch.settle(ctx.owed)
        gradient = ctx.steps.end(grad_output, ctx.begun)
        return gradient.reshape(ctx.shape).to(ctx.dtype), None, None


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


def _check_graph(features: Tensor) -> None:
    check_grad_mode()
    if not features.requires_grad:
        raise RuntimeError(
            "server.forward trains the server half in the backward pass, so it needs "
            "features with an autograd graph, from a device half with parameters to "
            "train. Use server.predict to evaluate."
        )
