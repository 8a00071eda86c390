"""The proximal term of FedProx.

To a device's loss it adds ``mu / 2 |w - w0|^2``, where ``w0`` are the weights that the
round began with. Its gradient is ``mu (w - w0)``.

Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020.
"""

from torch import Tensor, nn


class ProximalTerm:
    """The pull of a model's weights towards where they are now.

    Parameters
    ----------
    model : nn.Module
        With the weights ``w0``.
    mu : float
        0 for no pull.
    """

    def __init__(self, model: nn.Module, mu: float) -> None:
        self._mu = mu
        # without a pull, the copies would only take memory
        self._pulled: list[tuple[nn.Parameter, Tensor]] = []
        if not mu:
            return
        for parameter in model.parameters():
            if parameter.requires_grad:
                start = parameter.detach().clone()
                self._pulled.append((parameter, start))

    def add_gradient(self) -> None:
        """Add the term's gradient to that of each parameter that has one."""
        for parameter, start in self._pulled:
            if parameter.grad is not None:
                moved = parameter.detach() - start
                parameter.grad.add_(moved, alpha=self._mu)
