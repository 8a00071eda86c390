"""The base class of grids that add something to another grid."""

from collections.abc import Iterable
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid


class DelegatingGrid(Grid):
    """A grid that hands every call on to another.

    Subclasses override the calls in which they differ from it.

    Parameters
    ----------
    grid : Grid
        The grid that does the work.
    """

    def __init__(self, grid: Grid) -> None:
        self.inner = grid

    def set_run(self, run: Any) -> None:
        """Set the run of the inner grid."""
        self.inner.set_run(run)

    @property
    def run(self) -> Any:
        """The run of the inner grid."""
        return self.inner.run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """Create a message of the inner grid's run."""
        return self.inner.create_message(*args, **kwargs)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of the inner grid's nodes."""
        return self.inner.get_node_ids()

    def get_nodes(self) -> Iterable[Any]:
        """Return what the inner grid knows of its nodes."""
        return self.inner.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Push messages to their nodes, and return the ids of those that went out."""
        return self.inner.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are in to some messages."""
        return self.inner.pull_messages(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push messages, and pull until all replies are in or the timeout is over."""
        return self.inner.send_and_receive(messages, timeout=timeout)
