"""A grid that codes models, for any Flower strategy."""

import time
from collections.abc import Iterable, Sequence

from flwr.app import Message
from flwr.serverapp import Grid

from flwr_splitfc.codec.model_codec import ModelCodec
from flwr_splitfc.exchange.server.grid.delegating_grid import DelegatingGrid
from flwr_splitfc.exchange.server.grid.flower_messages import round_told_in
from flwr_splitfc.exchange.server.grid.model_coder import ModelCoder


class ModelCodecGrid(DelegatingGrid):
    """A grid between a strategy and the devices that codes the models on their way.

    The strategy stays as it is, and so does the app on devices but for one line:
    `model_codec_mod` among its mods. A device without it fails: it cannot read the
    arrays. The strategies of this package code models by themselves (``model_bits``).
    A message with several `ArrayRecord` goes as it is.

    Parameters
    ----------
    grid : Grid
        The grid that does the work.
    bits : int or ModelCodec (default: 8)
        Bits per entry of weights on their way down, and of their changes on the way up;
        32 leaves all as it is.

    Examples
    --------
    In a `ServerApp`, and in the `ClientApp`::

        strategy = FedAvg()
        strategy.start(ModelCodecGrid(grid), arrays)

        app = ClientApp(mods=[model_codec_mod])
    """

    def __init__(self, grid: Grid, bits: int | ModelCodec = 8) -> None:
        super().__init__(grid)
        self._coder = ModelCoder(ModelCodec.of(bits))
        # what was pushed and not pulled yet
        self._pushed: dict[str, Message] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Code the models in messages, and push these to their nodes."""
        self._forget_expired()
        coded = self._encoded(messages)
        message_ids = list(self.inner.push_messages(coded))
        # Flower gives no id, or None, for a message whose node is gone.
        by_id = {message.metadata.message_id: message for message in coded}
        for message_id in message_ids:
            if message_id in by_id:
                self._pushed[message_id] = by_id.pop(message_id)
        self._coder.forget(by_id.values())
        return message_ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are in to some messages, with whole models."""
        replies = list(self.inner.pull_messages(message_ids))
        return [self._decoded(reply, self._pushed) for reply in replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Code, push, and pull until all replies are in or the timeout is over."""
        coded = self._encoded(messages)
        try:
            replies = list(self.inner.send_and_receive(coded, timeout=timeout))
            asked = {message.metadata.message_id: message for message in coded}
            return [self._decoded(reply, asked) for reply in replies]
        finally:
            self._coder.forget(coded)

    def _forget_expired(self) -> None:
        """Drop what is kept for replies that were never pulled, and cannot be now."""
        now = time.time()
        for message_id, message in list(self._pushed.items()):
            metadata = message.metadata
            if metadata.created_at + metadata.ttl < now:
                del self._pushed[message_id]
                self._coder.forget([message])

    def _encoded(self, messages: Iterable[Message]) -> Sequence[Message]:
        coded = list(messages)
        for message in coded:
            self._coder.encode(message, round_told_in(message) or 0)
        return coded

    def _decoded(self, reply: Message, asked: dict[str, Message]) -> Message:
        message = asked.pop(reply.metadata.reply_to_message_id, None)
        if message is None:
            return reply
        decoded = self._coder.decode(reply, message)
        self._coder.forget([message])
        return decoded
