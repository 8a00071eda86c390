"""A grid that counts the bytes of Flower's messages."""

from collections.abc import Iterable, Sequence
from logging import getLogger

from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid

from flwr_splitfc.codec.model_codec import ModelCodec
from flwr_splitfc.exchange.server.accounts.ledger import Ledger
from flwr_splitfc.exchange.server.accounts.name_order import name_order
from flwr_splitfc.exchange.server.accounts.traffic import Traffic
from flwr_splitfc.exchange.server.grid.delegating_grid import DelegatingGrid
from flwr_splitfc.exchange.server.grid.devices import Devices
from flwr_splitfc.exchange.server.grid.flower_messages import (
    failure_of,
    purpose_of,
    reported_loss,
    reported_steps,
    round_told_in,
)
from flwr_splitfc.exchange.server.grid.message_bytes import MessageMeter
from flwr_splitfc.exchange.server.grid.model_coder import ModelCoder
from flwr_splitfc.exchange.server.grid.pushed_messages import replies_to
from flwr_splitfc.exchange.server.grid.reply_checks import Reply, ReplyChecks

logger = getLogger("flwr")


class MeteredGrid(DelegatingGrid):
    """A grid that enters train and evaluate messages, and replies, in a ledger.

    Parameters
    ----------
    grid : Grid
        The grid that does the work.
    ledger : Ledger
    checks : ReplyChecks, optional
        What replies of devices have to be.
    model_codec : ModelCodec, optional
        How models travel; by default as they are.
    first : ArrayRecord, optional
        The model that training begins with; default: the first that is sent.

    Attributes
    ----------
    server_round : int
        The round of messages whose config tells none; most strategies write it there.
    devices : Devices
        The names of the nodes, under which their traffic is entered. Each node is asked
        for its own once.
    """

    def __init__(
        self,
        grid: Grid,
        ledger: Ledger,
        checks: ReplyChecks | None = None,
        model_codec: ModelCodec | None = None,
        first: ArrayRecord | None = None,
    ) -> None:
        super().__init__(grid)
        self.ledger = ledger
        self.checks = checks or ReplyChecks()
        self.server_round = 0
        self.devices = Devices(grid)
        self._coder = ModelCoder(model_codec or ModelCodec(), self.devices, first)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send as `Grid.send_and_receive` does, and count both ways."""
        sent = list(messages)
        names = self.devices.names(
            message.metadata.dst_node_id for message in sent if purpose_of(message)
        )
        try:
            replies = self._exchange(sent, names, timeout)
        finally:
            self._coder.forget(sent)
        for reply in replies:
            purpose = purpose_of(reply)
            if purpose is not None and reply.has_content():
                server_round = self.round_of(sent[0])
                device = names.get(reply.metadata.src_node_id)
                traffic = self._reported_by(reply)
                self.ledger.add(server_round, purpose, traffic, device)
        return replies

    def round_of(self, message: Message) -> int:
        """Return the server round of a message."""
        told = round_told_in(message)
        return self.server_round if told is None else told

    def _exchange(
        self, messages: list[Message], names: dict[int, str], timeout: float | None
    ) -> list[Message]:
        for message in messages:
            self._coder.encode(message, self.round_of(message))
        self._count_sent(messages, names)
        answered = replies_to(messages, self.inner, timeout)
        # the order of arrival decides nothing
        answered.sort(key=lambda pair: order_of(pair[1], names))
        checked = self.checks.checked(
            [self._received(reply, asked, names) for reply, asked in answered]
        )
        self._report(messages, names, checked, timeout)
        return checked

    def _count_sent(self, messages: Iterable[Message], names: dict[int, str]) -> None:
        meter = MessageMeter()
        for message in messages:
            purpose = purpose_of(message)
            if purpose is not None:
                server_round = self.round_of(message)
                device = names[message.metadata.dst_node_id]
                downlink_bytes = meter.bytes_of(message)
                # a message and its reply are one round trip
                traffic = Traffic(round_trips=1, downlink_bytes=downlink_bytes)
                self.ledger.add(server_round, purpose, traffic, device)

    def _received(self, reply: Message, asked: Message, names: dict[int, str]) -> Reply:
        """Count a reply's bytes, and decode the model in it."""
        purpose = purpose_of(asked)
        if purpose is not None and reply.has_content():
            traffic = Traffic(uplink_bytes=MessageMeter().bytes_of(reply))
            device = names.get(asked.metadata.dst_node_id)
            self.ledger.add(self.round_of(asked), purpose, traffic, device)
        return Reply(self._coder.decode(reply, asked), asked)

    def _reported_by(self, reply: Message) -> Traffic:
        # The device trains by itself: what it reports is all that is known of that.
        traffic = Traffic()
        traffic.add(reported_steps(reply))
        traffic.add(reported_loss(reply))
        return traffic

    def _report(
        self,
        messages: Sequence[Message],
        names: dict[int, str],
        replies: Sequence[Message],
        timeout: float | None,
    ) -> None:
        """Log which devices failed, and why, and enter them in the ledger."""
        asked = [message for message in messages if purpose_of(message) is not None]
        failures = {
            **self._missing(asked, names, replies, timeout),
            **_errors(names, replies),
        }
        if not failures:
            return
        server_round = self.round_of(asked[0])
        for device, why in failures.items():
            logger.warning(
                "Device %s failed in round %d: %s", device, server_round, why
            )
        purpose = purpose_of(asked[0])
        assert purpose is not None  # those asked have one
        self.ledger.add_failures(server_round, purpose, failures)

    def _missing(
        self,
        messages: Sequence[Message],
        names: dict[int, str],
        replies: Sequence[Message],
        timeout: float | None,
    ) -> dict[str, str]:
        """Return by device why its reply is missing."""
        replied = {names.get(reply.metadata.src_node_id) for reply in replies}
        silent = [
            message.metadata.dst_node_id
            for message in messages
            if names[message.metadata.dst_node_id] not in replied
        ]
        # all nodes there are, which may be many, are seldom asked for
        present = set(self.inner.get_node_ids()) if silent else set()
        missing = {}
        for node_id in silent:
            device = names[node_id]
            if node_id in present:
                missing[device] = f"no reply within {timeout} s"
            else:
                missing[device] = "its node is gone"
        return missing


def order_of(asked: Message, names: dict[int, str]) -> tuple[bool, int, str]:
    """Return the place of a message's device, by its name, for a sort."""
    return name_order(names.get(asked.metadata.dst_node_id, ""))


def _errors(names: dict[int, str], replies: Sequence[Message]) -> dict[str, str]:
    """Return by device what its error reply says."""
    return {
        names[reply.metadata.src_node_id]: failure_of(reply)
        for reply in replies
        if reply.has_error() and reply.metadata.src_node_id in names
    }
