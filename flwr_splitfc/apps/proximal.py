"""The proximal term of FedProx.

To a device's loss it adds ``mu / 2 |w - w0|^2``, where ``w0`` are the weights that the
round began with. Its gradient is ``mu (w - w0)``.

Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020.
"""

from torch import nn


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
        self._parameters: list[nn.Parameter] = []
        if mu:
            self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._start = [p.detach().clone() for p in self._parameters]

    def add_gradient(self) -> None:
        """Add the term's gradient to that of each parameter that has one."""
        for parameter, start in zip(self._parameters, self._start, strict=True):
            if parameter.grad is not None:
                moved = parameter.detach() - start
                parameter.grad.add_(moved, alpha=self._mu)
