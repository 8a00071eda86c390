"""The grid of one run in a simulation that serves many."""

import json
from collections.abc import Iterable

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from flwr_splitfc.codec import BudgetError
from flwr_splitfc.compare.workers.run_client_app import RUN_KEY
from flwr_splitfc.exchange.server.grid.delegating_grid import DelegatingGrid
from flwr_splitfc.exchange.server.grid.flower_messages import (
    failure_of,
    purpose_of,
    readable_error,
)
from flwr_splitfc.settings import RunConfig

# Stands in the message of a codec's BudgetError.
_TOO_SMALL = "the smallest that works is"


class DeviceFailed(RuntimeError):
    """A device raised an error in its turn.

    A strategy would go on without the device; a comparison must not, since its row
    would stand for something else.
    """


class RunGrid(DelegatingGrid):
    """A grid that names the run in each message, and stops it when a device fails.

    Parameters
    ----------
    grid : Grid
        The simulation's own.
    run_id : str
    config : mapping
        The run-config that the run's ClientApps shall see.

    Attributes
    ----------
    turns : int
        Train and evaluate messages sent.
    """

    def __init__(self, grid: Grid, run_id: str, config: RunConfig) -> None:
        super().__init__(grid)
        self.turns = 0
        # As text, because a ConfigRecord takes no empty strings.
        text = json.dumps(dict(config))
        self._record = ConfigRecord({"id": run_id, "config": text})

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send marked messages, and check the replies."""
        replies = super().send_and_receive(self._marked(messages), timeout=timeout)
        return _checked(replies)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Push marked messages."""
        return super().push_messages(self._marked(messages))

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pull replies, and check them."""
        return _checked(super().pull_messages(message_ids))

    def _marked(self, messages: Iterable[Message]) -> list[Message]:
        marked = list(messages)
        for message in marked:
            # Strategies share one RecordDict among their messages; the copy shares its
            # arrays.
            message.content = RecordDict({**message.content, RUN_KEY: self._record})
            if purpose_of(message) is not None:
                self.turns += 1
        return marked


def _checked(replies: Iterable[Message]) -> list[Message]:
    """Return the replies, if no device failed in its turn.

    Raises
    ------
    BudgetError
        If a device failed because its codec cannot meet the budget.
    DeviceFailed
        If it failed for another reason.
    """
    checked = list(replies)
    for reply in checked:
        if reply.has_error() and purpose_of(reply) is not None:
            raise _failure(reply)
    return checked


def _failure(reply: Message) -> Exception:
    # Of a traceback, which holds a machine's paths, the message alone.
    for line in (reply.error.reason or "").splitlines():
        if _TOO_SMALL in line:
            return BudgetError(line.strip())
    readable = readable_error(reply, reply.error)
    return DeviceFailed(f"a device failed: {failure_of(readable)}")
