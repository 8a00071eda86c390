"""One gRPC call between a device and the split endpoint."""

import queue
import time
from collections.abc import Iterator
from contextlib import suppress
from threading import Event, Thread

import grpc
from google.protobuf.message import DecodeError

from flwr_splitfc.exchange.device.channel import open_channel
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.rpc import (
    KEEPALIVE_MS,
    REFUSED_KEY,
    SESSION_METHOD,
    TOKEN_KEY,
)
from flwr_splitfc.exchange.protocol.split_errors import (
    ProtocolError,
    SplitError,
    error_from,
)
from flwr_splitfc.exchange.protocol.ticket import Ticket

# a server that does not answer must not hold up the end of a process
_LEAVING_TIMEOUT_S = 5.0


class SessionCall:
    """A connection to the endpoint with one call of its session method.

    It connects when the first frame is sent. A connection that breaks raises a
    `grpc.RpcError` in `receive`.

    Parameters
    ----------
    address : str
        ``host:port``
    ticket : Ticket
    ping_timeout_s : float
        How long a ping's answer is waited for, once gRPC has handed the ping on. It
        comes behind all bytes under way.

    Attributes
    ----------
    connected_at : float
        When the first frame went out, by `time.perf_counter`; 0.0 before.
    """

    def __init__(self, address: str, ticket: Ticket, ping_timeout_s: float) -> None:
        self._channel = open_channel(
            address, ticket.tls, ticket.authority.encode(), _options(ping_timeout_s)
        )
        # frames go and come as bytes: whoever counts them serializes them
        call = self._channel.stream_stream(SESSION_METHOD)
        # None ends the device's side of the stream
        self._frames: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.connected_at = 0.0
        self._replies = call(self._to_send(), metadata=((TOKEN_KEY, ticket.token),))

    def _to_send(self) -> Iterator[bytes]:
        for frame in iter(self._frames.get, None):
            yield frame
            # gRPC asks for the next frame when this one has gone out
            self.connected_at = self.connected_at or time.perf_counter()

    def send(self, frame: bytes) -> None:
        """Send a serialized frame; return before it is on its way."""
        self._frames.put(frame)

    def receive(self) -> bytes:
        """Wait for the server's next frame and return it, serialized."""
        try:
            reply: bytes = next(self._replies)
        except StopIteration:
            raise ProtocolError(
                "the server ended the stream without an answer"
            ) from None
        return reply

    def finish(self) -> None:
        """Let the stream end on both sides, and end the connection."""
        self._frames.put(None)
        # everything that mattered was answered
        with suppress(grpc.RpcError):
            next(self._replies, None)
        self.close()

    def leave(self) -> None:
        """Say that no frame follows; end the connection later, when the server has."""
        self._frames.put(pb.DeviceFrame(leave=pb.Leave()).SerializeToString())
        self._frames.put(None)
        # no daemon: a process that ends at once would take the frame with it
        Thread(target=self._close_when_over).start()

    def _close_when_over(self) -> None:
        over = Event()
        if self._replies.add_callback(over.set):
            over.wait(_LEAVING_TIMEOUT_S)
        self.close()

    def close(self) -> None:
        """End the connection, whatever state it is in."""
        self._frames.put(None)
        self._replies.cancel()
        self._channel.close()


def refusal_in(error: grpc.RpcError) -> SplitError | None:
    """Return the refusal with which the server ended a call, if it was one."""
    for key, value in error.trailing_metadata() or ():
        if key == REFUSED_KEY:
            # what cannot be read is a refusal without a reason
            refused = pb.Refused()
            with suppress(DecodeError):
                refused.ParseFromString(value)
            return error_from(refused)
    return None


def _options(ping_timeout_s: float) -> list[tuple[str, int | str]]:
    return [
        # -1 is no limit: the limits are the server's
        ("grpc.max_send_message_length", -1),
        # nobody but the server knows how large its half's output is
        ("grpc.max_receive_message_length", -1),
        # frames are dense already, and a few bytes would inflate to any number: what
        # comes compressed stays so, and is no frame
        ("grpc.per_message_decompression", 0),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        # or gRPC would ask once a minute only, from the third ping on
        ("grpc.http2.max_pings_without_data", 0),
        # not the one of the keepalive: TCP takes that for its own, and a line that is
        # only slow would break
        ("grpc.http2.ping_timeout_ms", round(1000 * ping_timeout_s)),
        ("grpc.enable_http_proxy", 0),
        # a new channel is a new connection, with no back-off of the last one's
        ("grpc.use_local_subchannel_pool", 1),
    ]
