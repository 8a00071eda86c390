"""Messages that were pushed, and their replies, each of which is pulled by itself.

Flower raises an error for a reply that it cannot read, and what it fetched in the same
call is lost.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from flwr.app import Message
from flwr.serverapp import Grid

from flwr_splitfc.codec import BudgetError
from flwr_splitfc.exchange.protocol.told_text import one_line
from flwr_splitfc.exchange.server.grid.flower_messages import UNREADABLE, error_reply
from flwr_splitfc.exchange.server.grid.polling_pace import PollingPace

_LOOK_S = 0.1  # a SuperLink answers about twenty pulls in it


@dataclass(frozen=True)
class Outgoing:
    """A message to send.

    Parameters
    ----------
    message : Message
    token : str, optional
        Of the session that it admits to, if any.
    asked : Message, optional
        The strategy's message, of which this one is the next after a frame.
    """

    message: Message
    token: str | None = None
    asked: Message | None = None

    @property
    def strategy_message(self) -> Message:
        """The strategy's message, which the device's last reply is for."""
        return self.asked or self.message


class PushedMessages:
    """The messages that a grid has pushed and that wait for a reply.

    Parameters
    ----------
    grid : Grid
        Carries the messages.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        # by message id, the next to be pulled first
        self._waiting: dict[str, Outgoing] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def replies(
        self, outgoing: Sequence[Outgoing], timeout_s: float | None
    ) -> list[tuple[Message, Outgoing]]:
        """Send messages, and return the replies that come until the timeout is over.

        Each is with what it replies to.
        """
        pace = PollingPace(timeout_s)
        self.push(outgoing)
        replies: list[tuple[Message, Outgoing]] = []
        while self:
            is_last = pace.is_over
            pulled = self.pull(is_last=is_last)
            replies += self._settled(pulled)
            if is_last or not self:
                break
            pace.pause(some_came=bool(pulled))
        return replies

    def _settled(
        self, pulled: Sequence[tuple[Message, Outgoing]]
    ) -> Sequence[tuple[Message, Outgoing]]:
        """Return the replies that are for the strategy, after each look for some."""
        return pulled

    def push(self, outgoing: Sequence[Outgoing]) -> None:
        """Send messages, and wait for the replies of nodes that are still there."""
        messages = [each.message for each in outgoing]
        pushed = self._grid.push_messages(messages)
        by_id = {each.message.metadata.message_id: each for each in outgoing}
        # Flower gives no id, or None, for a message whose node is gone.
        self._waiting |= {
            message_id: by_id[message_id] for message_id in pushed if message_id
        }

    def pull(self, *, is_last: bool) -> list[tuple[Message, Outgoing]]:
        """Return replies that are in, each with what it replies to.

        Where many messages wait, one call looks for some, and the next for others: each
        costs the SuperLink a request, and this process the time of it. The last call
        looks for all.
        """
        pulled = []
        deadline = inf if is_last else time.monotonic() + _LOOK_S
        for message_id, asked in list(self._waiting.items()):
            del self._waiting[message_id]
            reply = self._reply_to(message_id, asked.message)
            if reply is None:
                self._waiting[message_id] = asked
            else:
                pulled.append((reply, asked))
            if time.monotonic() >= deadline:
                break
        return pulled

    def _reply_to(self, message_id: str, message: Message) -> Message | None:
        """Return the reply to a message; an error reply for one that is none."""
        try:
            replies = list(self._grid.pull_messages([message_id]))
        except BudgetError:
            raise  # by a grid of one's own, as comparisons have: it ends the run
        except UNREADABLE as error:
            why = one_line(repr(error), 200)
            return error_reply(message, f"its reply cannot be read: {why}")
        for reply in replies:
            # a reply that nothing waits for must not end the run for all
            if reply.metadata.reply_to_message_id == message_id:
                return reply
        return None


def replies_to(
    messages: Sequence[Message], grid: Grid, timeout_s: float | None
) -> list[tuple[Message, Message]]:
    """Send messages, and return the replies that come, each with its message."""
    outgoing = [Outgoing(message) for message in messages]
    replies = PushedMessages(grid).replies(outgoing, timeout_s)
    return [(reply, asked.message) for reply, asked in replies]
