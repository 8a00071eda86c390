"""Grid decorators: count what Flower's messages carry, and hand out session tickets."""

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from logging import getLogger
from typing import Any

from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid
from google.protobuf.message import DecodeError

from flwr_splitfc.codec import CutCodec
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.frames import (
    FRAME_KEY,
    frame_of,
    frame_record,
    has_frame,
)
from flwr_splitfc.exchange.protocol.ticket import TICKET_KEY, Purpose
from flwr_splitfc.exchange.server.budget_rules import (
    BudgetRule,
    Cut,
    DeviceRound,
    budgeted,
)
from flwr_splitfc.exchange.server.devices import Devices, name_order
from flwr_splitfc.exchange.server.endpoint import SplitEndpoint
from flwr_splitfc.exchange.server.ledger import Ledger, Traffic

_FIRST_PULL_S = 0.01
_LAST_PULL_S = 1.0
_GIVEN_UP = 0  # among Flower's error codes: unknown
_PURPOSES: dict[str, Purpose] = {"train": "train", "evaluate": "evaluate"}

logger = getLogger("flwr")


class MeteredGrid(Grid):
    """A grid that enters the model arrays of train and evaluate messages in a ledger.

    Parameters
    ----------
    grid : Grid
        The grid that does the work.
    ledger : Ledger

    Attributes
    ----------
    server_round : int
        The round of messages that do not tell; most strategies write it into the
        config.
    devices : Devices
        Their names, under which their traffic is entered; each is asked for its own
        once.
    """

    def __init__(self, grid: Grid, ledger: Ledger) -> None:
        self.inner = grid
        self.ledger = ledger
        self.server_round = 0
        self.devices = Devices(grid)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send as `Grid.send_and_receive` does, and count both ways."""
        sent = list(messages)
        names = self.devices.names(
            message.metadata.dst_node_id for message in sent if purpose_of(message)
        )
        replies = self._exchange(sent, names, timeout)
        for reply in replies:
            if reply.has_content() and (purpose := purpose_of(reply)):
                device = names.get(reply.metadata.src_node_id)
                self.ledger.add(
                    self.round_of(sent[0]), purpose, self._received(reply), device
                )
        return replies

    def round_of(self, message: Message) -> int:
        """The server round of a message."""
        for record in (
            message.content.config_records.values() if message.has_content() else ()
        ):
            if isinstance(told := record.get("server-round"), int):
                return told
        return self.server_round

    def _exchange(
        self, messages: list[Message], names: dict[int, str], timeout: float | None
    ) -> list[Message]:
        for message in messages:
            self._count_sent(message, names)
        return list(self.inner.send_and_receive(messages, timeout=timeout))

    def _count_sent(self, message: Message, names: dict[int, str]) -> None:
        if purpose := purpose_of(message):
            traffic = Traffic(
                round_trips=1, downlink_bytes=Counter(model=_model_bytes(message))
            )
            self.ledger.add(
                self.round_of(message),
                purpose,
                traffic,
                names[message.metadata.dst_node_id],
            )

    def _received(self, reply: Message) -> Traffic:
        """What a device that trains by itself reports is all that is known of its training."""
        traffic = Traffic(uplink_bytes=Counter(model=_model_bytes(reply)))
        for metrics in reply.content.metric_records.values():
            traffic.rows += _number(metrics.get("num-examples"))
            traffic.steps += _number(metrics.get("steps"))
        traffic.add(_loss_of(reply))
        return traffic

    def set_run(self, run: Any) -> None:
        """Delegate."""
        self.inner.set_run(run)

    @property
    def run(self) -> Any:
        """Delegate."""
        return self.inner.run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """Delegate."""
        return self.inner.create_message(*args, **kwargs)

    def get_node_ids(self) -> Iterable[int]:
        """Delegate."""
        return self.inner.get_node_ids()

    def get_nodes(self) -> Iterable[Any]:
        """Delegate."""
        return self.inner.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Delegate."""
        return self.inner.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Delegate."""
        return self.inner.pull_messages(message_ids)


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
    budgets : sequence of BudgetRule, optional
        What makes a device's budgets other than the endpoint's. A device for which a
        rule has none gets no message, and an error reply says why.
    """

    def __init__(
        self, grid: Grid, endpoint: SplitEndpoint, budgets: Sequence[BudgetRule] = ()
    ) -> None:
        super().__init__(grid, endpoint.ledger)
        self.endpoint = endpoint
        self.budgets = budgets

    def _received(self, reply: Message) -> Traffic:
        """The model's bytes, and the loss where that is the device's: the endpoint has seen the rest itself."""
        traffic = Traffic(uplink_bytes=Counter(model=_model_bytes(reply)))
        if self.endpoint.output_codec is not None:
            traffic.add(_loss_of(reply))
        return traffic

    def _exchange(
        self, messages: list[Message], names: dict[int, str], timeout: float | None
    ) -> list[Message]:
        split = [message for message in messages if purpose_of(message)]
        tokens: dict[int, str] = {}
        refused: dict[int, Message] = {}
        try:
            for message in split:
                device = names[message.metadata.dst_node_id]
                try:
                    codecs = self._codecs(message, device)
                except ValueError as error:
                    refused[id(message)] = Message(
                        Error(_GIVEN_UP, f"no budget: {error}"), reply_to=message
                    )
                else:
                    self._count_sent(message, names)
                    tokens[id(message)] = self._add_ticket(message, device, *codecs)
            admitted = [message for message in messages if id(message) not in refused]
            replies = [
                *self._push_and_pull(admitted, tokens, timeout),
                *refused.values(),
            ]
        finally:
            self.endpoint.end_round(list(tokens.values()))
        self._report(split, names, replies, timeout)
        # Float sums depend on their order: let it be the devices', not that of sampling
        # or of arrival.
        return sorted(
            replies,
            key=lambda reply: name_order(names.get(reply.metadata.src_node_id, "")),
        )

    def _codecs(
        self, message: Message, device: str
    ) -> tuple[CutCodec, CutCodec | None]:
        """Those at a device's cuts, with its budgets; a `ValueError` where a rule has none."""
        config = self.devices.node_config(message.metadata.dst_node_id)

        def budgeted_at(cut: Cut, codec: CutCodec) -> CutCodec:
            own, last = (
                (codec.uplink_bits, codec.downlink_bits),
                self.endpoint.last_turn(device, cut),
            )
            return budgeted(
                codec,
                self.budgets,
                DeviceRound(device, self.round_of(message), *own, cut, config, last),
            )

        output_codec = self.endpoint.output_codec
        codec = budgeted_at("features", self.endpoint.codec)
        return codec, output_codec and budgeted_at("output", output_codec)

    def _add_ticket(
        self,
        message: Message,
        device: str,
        codec: CutCodec,
        output_codec: CutCodec | None,
    ) -> str:
        purpose = purpose_of(message)
        assert purpose is not None
        ticket = self.endpoint.issue(
            purpose,
            device,
            self.round_of(message),
            codec=codec,
            output_codec=output_codec,
        )
        # Strategies share one RecordDict among their messages; the copy shares its
        # arrays.
        message.content = RecordDict(
            {**message.content, TICKET_KEY: ticket.to_record()}
        )
        if not ticket.address:
            hello = pb.DeviceFrame(
                open=pb.Open(
                    protocol=ticket.protocol, nonce=bytes(16), software="in messages"
                )
            )
            message.content[FRAME_KEY] = frame_record(
                self.endpoint.deliver(ticket.token, hello)
            )
        return ticket.token

    def _push_and_pull(
        self, messages: list[Message], tokens: dict[int, str], timeout: float | None
    ) -> list[Message]:
        deadline = None if timeout is None else time.monotonic() + timeout
        waiting = set(self.inner.push_messages(messages))
        waiting.discard(None)  # its node is gone
        token_of = {
            message.metadata.message_id: tokens.get(id(message)) for message in messages
        }
        sent = {message.metadata.message_id: message for message in messages}
        replies: list[Message] = []
        pause_s = _FIRST_PULL_S
        while waiting:
            pulled = list(self.inner.pull_messages(waiting))
            waiting -= {reply.metadata.reply_to_message_id for reply in pulled}
            new = []
            for reply in pulled:
                asked = reply.metadata.reply_to_message_id
                answer = self._deliver(reply, token_of.get(asked))
                if answer is None or answer.WhichOneof("kind") == "closed":
                    new.append(reply)
                elif answer.WhichOneof("kind") == "refused":
                    new.append(
                        Message(
                            Error(_GIVEN_UP, answer.refused.detail),
                            reply_to=sent[asked],
                        )
                    )
                else:
                    waiting.update(self._push_again(answer, asked, sent, token_of))
            for reply in new:
                token = token_of.get(reply.metadata.reply_to_message_id)
                if token and reply.has_content():
                    self.endpoint.replied(token)
            for token, why in self.endpoint.sweep().items():
                given_up = [
                    message_id
                    for message_id in waiting
                    if token_of[message_id] == token
                ]
                new += [
                    Message(Error(_GIVEN_UP, why), reply_to=sent[message_id])
                    for message_id in given_up
                ]
                waiting -= set(given_up)
            replies += new
            if not waiting or (deadline is not None and time.monotonic() >= deadline):
                break
            time.sleep(
                pause_s
                if deadline is None
                else max(min(pause_s, deadline - time.monotonic()), 0.0)
            )
            pause_s = _FIRST_PULL_S if pulled else min(pause_s * 1.2, _LAST_PULL_S)
        return replies

    def _deliver(self, reply: Message, token: str | None) -> pb.ServerFrame | None:
        """Where frames travel in messages: the answer to the one in a reply, which it is taken out of."""
        if not (token and has_frame(reply)):
            return None
        frame = pb.DeviceFrame()
        with suppress(DecodeError):  # an empty frame is refused
            frame.ParseFromString(frame_of(reply))
        del reply.content[FRAME_KEY]
        return self.endpoint.deliver(token, frame)

    def _push_again(
        self,
        answer: pb.ServerFrame,
        asked: str,
        sent: dict[str, Message],
        token_of: dict[str, str | None],
    ) -> list[str]:
        first = sent[asked]
        content = RecordDict(
            {**first.content.config_records, FRAME_KEY: frame_record(answer)}
        )
        message = Message(
            content, first.metadata.dst_node_id, first.metadata.message_type
        )
        pushed = [
            message_id
            for message_id in self.inner.push_messages([message])
            if message_id
        ]
        for message_id in pushed:
            sent[message_id], token_of[message_id] = message, token_of[asked]
        return pushed

    def _report(
        self,
        sent: list[Message],
        names: dict[int, str],
        replies: list[Message],
        timeout: float | None,
    ) -> None:
        """Say who failed, and why."""
        there = set(self.inner.get_node_ids())
        late = {
            names[node]: f"no reply within {timeout} s"
            if node in there
            else "its node is gone"
            for node in (message.metadata.dst_node_id for message in sent)
        }
        for reply in replies:
            late.pop(names.get(reply.metadata.src_node_id, ""), None)
        errors = {
            names[reply.metadata.src_node_id]: _last_line(reply.error.reason)
            for reply in replies
            if reply.has_error() and reply.metadata.src_node_id in names
        }
        failures = {**late, **errors}
        for device, why in failures.items():
            logger.warning(
                "Device %s failed in round %d: %s", device, self.round_of(sent[0]), why
            )
        if failures:
            self.ledger.add_failures(self.round_of(sent[0]), failures)


def purpose_of(message: Message) -> Purpose | None:
    """What a message asks of a device at the cut; None for queries."""
    return _PURPOSES.get(message.metadata.message_type.split(".")[0])


def _model_bytes(message: Message) -> int:
    return sum(
        len(array.data)
        for record in message.content.array_records.values()
        for array in record.values()
    )


def _loss_of(reply: Message) -> Traffic:
    traffic = Traffic()
    for metrics in reply.content.metric_records.values():
        if "train_loss" in metrics:
            rows = _number(metrics.get("num-examples"))
            traffic.loss_sum += _number(metrics["train_loss"]) * rows
            traffic.loss_rows += rows
    return traffic


def _last_line(reason: str | None) -> str:
    """Of a traceback, what was raised."""
    lines = (reason or "").strip().splitlines()
    return lines[-1][-500:] if lines else "no reason given"


def _number(value: object) -> Any:
    return value if isinstance(value, int | float) else 0
