"""Warnings of training loops from which no backward pass goes down."""

from logging import getLogger
from weakref import ref

from torch.optim import Optimizer

_NO_BACKWARD = (
    "Device %s does not train: backward() was not called for what server.loss or "
    "server.forward returned. The training loop needs loss.backward() and "
    "optimizer.step() after each; to evaluate, use server.predict"
)
_NO_GRAPH = (
    "Device %s does not train its half: server.loss got features without an autograd "
    "graph, and the optimizer has parameters to train. Compute features without "
    "torch.no_grad(), and do not detach them; of a frozen half, call "
    "requires_grad_(False)"
)

logger = getLogger("flwr")


class OwedBackward:
    """A backward pass that has not come yet, held by the graph that it goes through."""


class BackwardWatch:
    """Warns, once, where the device half does not train.

    Nobody calls ``backward()``: a graph that is gone can have no backward pass any
    more. One that is there may: sums of several losses have one. Or all features come
    without a graph, and nothing that the optimizer trains has a gradient at the end.

    Parameters
    ----------
    device : str
        The device's name.
    optimizer : Optimizer or None
        Of the device half.
    """

    def __init__(self, device: str, optimizer: Optimizer | None) -> None:
        self._device = device
        self._optimizer = optimizer
        self._owed: list[ref[OwedBackward]] = []
        self._had_graph = self._had_none = False
        self._warned = False

    def owe(self) -> OwedBackward:
        """Return what the graph of a new loss has to hold."""
        if any(owed() is None for owed in self._owed):
            self._warn(_NO_BACKWARD)
        self._had_graph = True
        owed = OwedBackward()
        self._owed.append(ref(owed))
        return owed

    def settle(self, owed: OwedBackward) -> None:
        """Note that a backward pass has come."""
        self._owed = [other for other in self._owed if other() is not owed]

    def note_no_graph(self) -> None:
        """Note features without a graph, as a frozen half makes."""
        self._had_none = True

    def end(self) -> None:
        """Note the session's end: what is owed now does not come."""
        if self._owed:
            self._warn(_NO_BACKWARD)
        if self._had_none and not self._had_graph and self._forgets_the_half():
            self._warn(_NO_GRAPH)

    def _forgets_the_half(self) -> bool:
        groups = self._optimizer.param_groups if self._optimizer else []
        weights = [weight for group in groups for weight in group["params"]]
        wanted = [weight for weight in weights if weight.requires_grad]
        # a device may have a loss of its own, beside the server's
        return bool(wanted) and all(weight.grad is None for weight in wanted)

    def _warn(self, warning: str) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(warning, self._device)
