"""The server half as a node of the device's autograd graph.

The loss of an exchange is ``L(f)`` for features ``f``, and its gradient ``dL/df`` has
come with it: the backward pass multiplies it by the gradient that comes from above.
Where the last layers are the device's, the output is ``g(f)``, and the backward pass
asks the server for ``dL/df`` with ``dL/dg``.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from flwr_splitfc.exchange.device.steps import Steps
from flwr_splitfc.exchange.device.u_shaped_steps import UShapedSteps


def server_loss(steps: Steps, features: Tensor, labels: Tensor) -> Tensor:
    """Return the server half's loss, with a graph down to `features`."""
    _check_graph(features)
    return _ServerLoss.apply(features, labels, steps)  # type: ignore[no-any-return]


def server_output(steps: UShapedSteps, features: Tensor) -> Tensor:
    """Return the server half's output, with a graph down to `features`."""
    _check_graph(features)
    return _ServerOutput.apply(features, steps)  # type: ignore[no-any-return]


class _ServerLoss(torch.autograd.Function):
    """The network and the server half, with its loss."""

    @staticmethod
    def forward(ctx, features: Tensor, labels: Tensor, steps: Steps) -> Tensor:  # type: ignore[no-untyped-def]
        loss, gradient = steps.train(features.detach(), labels.detach())
        ctx.save_for_backward(gradient.reshape(features.shape).to(features.dtype))
        return torch.tensor(loss, dtype=torch.float32, device=features.device)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[no-untyped-def]
        (gradient,) = ctx.saved_tensors
        return grad_output * gradient, None, None


class _ServerOutput(torch.autograd.Function):
    """The network, the server half, and the network."""

    @staticmethod
    def forward(ctx, features: Tensor, steps: UShapedSteps) -> Tensor:  # type: ignore[no-untyped-def]
        output, ctx.begun = steps.begin(features.detach())
        ctx.steps = steps
        ctx.shape, ctx.dtype = features.shape, features.dtype
        return output

    @staticmethod
    # the gradient from the server has no graph of its own
    @once_differentiable
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        gradient = ctx.steps.end(grad_output, ctx.begun)
        return gradient.reshape(ctx.shape).to(ctx.dtype), None


def _check_graph(features: Tensor) -> None:
    if torch.is_grad_enabled() and features.requires_grad:
        return
    raise RuntimeError(
        "server.loss and server.forward train the server half, so they need features "
        "with an autograd graph: not under torch.no_grad(), and with a device half "
        "that has parameters to train. Use server.predict to evaluate."
    )
