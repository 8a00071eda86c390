"""A grid that hands out session tickets with Flower's messages."""

from collections.abc import Sequence

from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid

from flwr_splitfc.codec import CutCodec, ModelCodec
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.frames import frame_field
from flwr_splitfc.exchange.protocol.payloads import tensor_payloads, total_bytes
from flwr_splitfc.exchange.protocol.records import with_fields
from flwr_splitfc.exchange.server.accounts.budget_rules import (
    BudgetRule,
    Cut,
    DeviceRound,
    budgeted,
)
from flwr_splitfc.exchange.server.accounts.frame_traffic import count_downlink
from flwr_splitfc.exchange.server.accounts.name_order import name_order
from flwr_splitfc.exchange.server.accounts.traffic import Traffic
from flwr_splitfc.exchange.server.endpoint.endpoint import SplitEndpoint
from flwr_splitfc.exchange.server.grid.flower_messages import (
    error_reply,
    purpose_of,
    reported_loss,
)
from flwr_splitfc.exchange.server.grid.messages_in_flight import MessagesInFlight
from flwr_splitfc.exchange.server.grid.metered_grid import MeteredGrid, order_of
from flwr_splitfc.exchange.server.grid.pushed_messages import Outgoing
from flwr_splitfc.exchange.server.grid.reply_checks import ReplyChecks


class SplitGrid(MeteredGrid):
    """A grid that adds a session ticket to each train and evaluate message.

    It lets any Flower strategy run unmodified on the device halves. When the replies
    are in, or the timeout has passed, the tickets are revoked and sessions still open
    are cancelled, so that no device stays busy with a round that is over. For a device
    that fell silent (`Limits`) the strategy gets an error reply; who failed, and why,
    is logged.

    Parameters
    ----------
    grid : Grid
        The grid that does the work.
    endpoint : SplitEndpoint
        An entered endpoint.
    budgets : sequence of BudgetRule
        What makes a device's budgets other than the endpoint's. A device for which a
        rule has none gets no message, and an error reply says why.
    checks : ReplyChecks
        What replies of devices have to be; those that are not become error replies, and
        what the device trained of a server half of its own is dropped.
    model_codec : ModelCodec
        How device halves travel; by default as they are.
    first : ArrayRecord
        The device half that training begins with.
    """

    def __init__(
        self,
        grid: Grid,
        endpoint: SplitEndpoint,
        budgets: Sequence[BudgetRule],
        checks: ReplyChecks,
        model_codec: ModelCodec,
        first: ArrayRecord,
    ) -> None:
        super().__init__(grid, endpoint.ledger, checks, model_codec, first)
        self.endpoint = endpoint
        self.budgets = budgets

    def _reported_by(self, reply: Message) -> Traffic:
        # The endpoint has seen the rest itself, but not a loss that is the device's.
        if self.endpoint.output_codec is None:
            return Traffic()
        return reported_loss(reply)

    def _exchange(
        self, messages: list[Message], names: dict[int, str], timeout: float | None
    ) -> list[Message]:
        # the devices have said their names: in a simulation, Ray has started
        self.endpoint.reach_simulation()
        outgoing: list[Outgoing] = []
        refusals: list[Message] = []
        try:
            for message in messages:
                if purpose_of(message) is None:
                    outgoing.append(Outgoing(message))
                    continue
                device = names[message.metadata.dst_node_id]
                try:
                    codecs = self._codecs(message, device)
                except ValueError as error:
                    refusals.append(error_reply(message, f"no budget: {error}"))
                else:
                    self._coder.encode(message, self.round_of(message))
                    token = self._admit(message, device, *codecs)
                    outgoing.append(Outgoing(message, token))
            self._count_sent([each.message for each in outgoing], names)
            in_flight = MessagesInFlight(self.inner, self.endpoint)
            answered = in_flight.replies(outgoing, timeout)
            replies = self._checked(answered, names) + refusals
        finally:
            tokens = [each.token for each in outgoing if each.token is not None]
            self.endpoint.end_round(tokens)
        self._report(messages, names, replies, timeout)
        # Float sums depend on their order: let it be the devices', not that of sampling
        # or of arrival.
        return sorted(
            replies,
            key=lambda reply: name_order(names.get(reply.metadata.src_node_id, "")),
        )

    def _codecs(
        self, message: Message, device: str
    ) -> tuple[CutCodec, CutCodec | None]:
        """Return the codecs at a device's cuts, with its budgets.

        Raises
        ------
        ValueError
            If a rule has no budget for it.
        """
        codec = self._budgeted(self.endpoint.codec, "features", message, device)
        output_codec = self.endpoint.output_codec
        if output_codec is not None:
            output_codec = self._budgeted(output_codec, "output", message, device)
        return codec, output_codec

    def _budgeted(
        self, codec: CutCodec, cut: Cut, message: Message, device: str
    ) -> CutCodec:
        device_round = DeviceRound(
            name=device,
            server_round=self.round_of(message),
            uplink_bits=codec.uplink_bits,
            downlink_bits=codec.downlink_bits,
            cut=cut,
            node_config=self.devices.node_config(message.metadata.dst_node_id),
            last=self.endpoint.last_turn(device, cut),
        )
        return budgeted(codec, self.budgets, device_round)

    def _admit(
        self,
        message: Message,
        device: str,
        codec: CutCodec,
        output_codec: CutCodec | None,
    ) -> str:
        """Put a ticket into a message, and what earlier turns left.

        Returns the token.
        """
        purpose = purpose_of(message)
        assert purpose is not None
        ticket = self.endpoint.issue(
            purpose,
            device,
            self.round_of(message),
            codec=codec,
            output_codec=output_codec,
        )
        fields = ticket.to_fields()
        kept = self.endpoint.kept(ticket.token)
        if kept.ByteSize():
            frame = pb.ServerFrame(kept=kept)
            fields |= frame_field(frame)
            traffic = Traffic()
            state = [*tensor_payloads(kept.optimizer), *tensor_payloads(kept.state)]
            count_downlink(traffic, frame, {"state": total_bytes(state)})
            self.ledger.add(self.round_of(message), purpose, traffic, device)
        message.content = with_fields(message.content, fields)
        return ticket.token

    def _checked(
        self, answered: Sequence[tuple[Message, Outgoing]], names: dict[int, str]
    ) -> list[Message]:
        """Return the replies as the strategy gets them, and settle the good ones."""
        # the order of arrival decides nothing
        in_order = sorted(answered, key=lambda pair: order_of(pair[1].message, names))
        replies = self.checks.checked(
            [
                self._received(reply, asked.strategy_message, names)
                for reply, asked in in_order
            ]
        )
        for reply, (_, asked) in zip(replies, in_order, strict=True):
            if asked.token is None:
                continue
            if reply.has_content():
                self.endpoint.replied(asked.token)
            else:
                self.endpoint.failed(asked.token)
        return replies
