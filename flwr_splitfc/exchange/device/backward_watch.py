"""A warning of losses from which no backward pass goes down."""

from logging import getLogger
from weakref import ref

logger = getLogger("flwr")


class OwedBackward:
    """A backward pass that has not come yet, held by the graph that it goes through."""


class BackwardWatch:
    """Warns, once, where the device half does not train: nobody calls ``backward()``.

    A graph that is gone can have no backward pass any more. One that is there may: sums
    of several losses have one.

    Parameters
    ----------
    device : str
        The device's name.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._owed: list[ref[OwedBackward]] = []
        self._warned = False

    def owe(self) -> OwedBackward:
        """Return what the graph of a new loss has to hold."""
        if any(owed() is None for owed in self._owed):
            self._warn()
        owed = OwedBackward()
        self._owed.append(ref(owed))
        return owed

    def settle(self, owed: OwedBackward) -> None:
        """Note that a backward pass has come."""
        self._owed = [other for other in self._owed if other() is not owed]

    def end(self) -> None:
        """Note the session's end: what is owed now does not come."""
        if self._owed:
            self._warn()

    def _warn(self) -> None:
        if self._warned:
            return
        self._warned = True
        logger.warning(
            "Device %s does not train: backward() was not called for what server.loss "
            "or server.forward returned. The training loop needs loss.backward() and "
            "optimizer.step() after each; to evaluate, use server.predict",
            self._device,
        )
