"""The messages of a round that wait for their replies, and the frames in these."""

from collections.abc import Sequence

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.frame_bytes import parse_frame
from flwr_splitfc.exchange.protocol.frames import (
    frame_field,
    frame_of,
    has_frame,
    without_frame,
)
from flwr_splitfc.exchange.protocol.records import with_fields
from flwr_splitfc.exchange.protocol.split_errors import ProtocolError
from flwr_splitfc.exchange.protocol.ticket import Ticket
from flwr_splitfc.exchange.server.accounts.traffic import Traffic
from flwr_splitfc.exchange.server.endpoint.endpoint import SplitEndpoint
from flwr_splitfc.exchange.server.grid.flower_messages import error_reply
from flwr_splitfc.exchange.server.grid.message_bytes import MessageMeter
from flwr_splitfc.exchange.server.grid.pushed_messages import Outgoing, PushedMessages


class MessagesInFlight(PushedMessages):
    """The messages of a round of sessions that wait for a reply.

    A device's reply may bring the last frame of its session, Close, beside what is for
    the strategy. Where frames travel in messages, replies bring the earlier ones, too,
    and each frame's answer goes out as a message of its own.

    Parameters
    ----------
    grid : Grid
        Carries the messages.
    endpoint : SplitEndpoint
        Answers the frames in them, and knows whose sessions are given up.
    """

    def __init__(self, grid: Grid, endpoint: SplitEndpoint) -> None:
        super().__init__(grid)
        self._endpoint = endpoint

    def _settled(
        self, pulled: Sequence[tuple[Message, Outgoing]]
    ) -> list[tuple[Message, Outgoing]]:
        return [*self._answered(pulled), *self._given_up()]

    def _answered(
        self, pulled: Sequence[tuple[Message, Outgoing]]
    ) -> list[tuple[Message, Outgoing]]:
        """Answer the frames in replies, and return the replies for the strategy."""
        last_replies = []
        for reply, asked in pulled:
            last_reply = self._answer(reply, asked)
            if last_reply is not None:
                last_replies.append((last_reply, asked))
        return last_replies

    def _answer(self, reply: Message, asked: Outgoing) -> Message | None:
        """Return the reply for the strategy; None after a frame with more to come."""
        if asked.token is None or not has_frame(reply):
            return reply
        meter = MessageMeter()
        uplink_bytes = meter.bytes_of(reply)
        try:
            frame = _take_frame(reply)
        except ProtocolError as error:
            return error_reply(asked.message, str(error))
        kind = frame.WhichOneof("kind")
        frames_travel_in_streams = bool(self._endpoint.address)
        if frames_travel_in_streams and kind != "close":
            return error_reply(
                asked.message,
                f"the reply brings a frame of kind {kind!r}, wanted 'close': "
                "the others travel in streams",
            )
        answer = self._endpoint.deliver(asked.token, frame)
        match answer.WhichOneof("kind"):
            case "closed":
                # what is left of it is counted where the strategy gets it
                uplink_bytes -= meter.bytes_of(reply)
                self._count(asked, Traffic(uplink_bytes=uplink_bytes))
                return reply
            case "refused":
                return error_reply(asked.message, answer.refused.detail)
            case _:
                following = _next_message(asked, answer)
                downlink_bytes = meter.bytes_of(following.message)
                self._count(
                    asked,
                    Traffic(uplink_bytes=uplink_bytes, downlink_bytes=downlink_bytes),
                )
                self.push([following])
                return None

    def _count(self, asked: Outgoing, traffic: Traffic) -> None:
        """Enter what Flower's messages hold beside the frames in them."""
        ticket = Ticket.from_message(asked.message)
        self._endpoint.ledger.add(
            ticket.server_round, ticket.purpose, traffic, ticket.device
        )

    def _given_up(self) -> list[tuple[Message, Outgoing]]:
        """Stop waiting for devices that are silent for too long: an error for each."""
        reasons = self._endpoint.sweep()
        replies = []
        for message_id, asked in list(self._waiting.items()):
            if asked.token is not None and asked.token in reasons:
                why = reasons[asked.token]
                replies.append((error_reply(asked.message, why), asked))
                del self._waiting[message_id]
        return replies


def _take_frame(reply: Message) -> pb.DeviceFrame:
    """Take the frame out of a reply: the strategy knows nothing of frames."""
    frame = parse_frame(frame_of(reply))
    reply.content = without_frame(reply)
    return frame


def _next_message(asked: Outgoing, answer: pb.ServerFrame) -> Outgoing:
    """Make the message with the answer to a frame, for the same device and session."""
    first = asked.message
    # the ticket and the config go with each message, the model's arrays with the first
    configs = RecordDict(dict(first.content.config_records))
    content = with_fields(configs, frame_field(answer))
    message = Message(
        content,
        dst_node_id=first.metadata.dst_node_id,
        message_type=first.metadata.message_type,
    )
    return Outgoing(message, asked.token, asked.strategy_message)
