"""The device's end of a session's transport: one gRPC stream after another, each frame applied once."""

import queue
import random
import secrets
import time
from contextlib import suppress
from importlib.metadata import version

import grpc

from flwr_splitfc.exchange.device.channel import open_channel
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.address import (
    is_loopback,
    join_address,
    split_address,
)
from flwr_splitfc.exchange.protocol.errors import (
    EndpointUnreachable,
    LimitExceeded,
    ProtocolError,
    SessionCancelled,
    SplitError,
    error_from,
)
from flwr_splitfc.exchange.protocol.rpc import KEEPALIVE_MS, SESSION_METHOD, TOKEN_KEY
from flwr_splitfc.exchange.protocol.ticket import Ticket

# an address that was never reached is more likely wrong than busy
_FIRST_CONNECT_S = 10.0
_CANCELLED_S = 1.0  # a server that cancelled is asked why, if it is still there
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.01, 2.0
_CHANNEL_OPTIONS: list[tuple[str, int | str]] = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.enable_http_proxy", 0),
    # a new channel is a new connection, with no back-off of the last one's
    ("grpc.use_local_subchannel_pool", 1),
]
_FINAL = (
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.INVALID_ARGUMENT,
)


class Stream:
    """Sends a device's frames and gets their answers, over as many connections as that takes.

    Parameters
    ----------
    ticket : Ticket
    address : str, optional
        ``host`` or ``host:port`` to connect to instead of the ticket's.

    Attributes
    ----------
    uplink_bytes, downlink_bytes : int
        Of all frames so far.
    reconnects : int
        How often the connection was opened again.
    """

    def __init__(self, ticket: Ticket, address: str = "") -> None:
        self.ticket = ticket
        self.address = _override(ticket.address, address)
        self.uplink_bytes = 0
        self.downlink_bytes = 0
        self.reconnects = -1
        self._nonce = secrets.token_bytes(16)
        self._number = 0
        self._channel: grpc.Channel | None = None

    def open(self) -> pb.Opened:
        """Open the session, and say what earlier turns left."""
        patience_s = min(_FIRST_CONNECT_S, self.ticket.reconnect_timeout_s)
        reply = self._until_answered(None, patience_s)
        return reply.opened

    def ask(self, frame: pb.DeviceFrame) -> pb.ServerFrame:
        """Send one frame and wait for its answer.

        Raises
        ------
        SplitError
            One of its kinds if the server refuses the frame, or cannot be reached again
            in time.
        """
        self._number += 1
        frame.number = self._number
        return self._until_answered(frame, self.ticket.reconnect_timeout_s)

    def close(self) -> None:
        """End the connection, whatever state it is in."""
        if self._channel is None:
            return
        self._frames.put(None)
        self._replies.cancel()
        self._channel.close()
        self._channel = None

    def finish(self) -> None:
        """Let the stream end on both sides, after the last answer."""
        if self._channel is not None:
            self._frames.put(None)
            with suppress(grpc.RpcError):  # everything that mattered was answered
                next(self._replies, None)
        self.close()

    def _until_answered(
        self, frame: pb.DeviceFrame | None, patience_s: float
    ) -> pb.ServerFrame:
        """The answer to `frame`, or to Open if there is none."""
        deadline, pause_s, cancelled = None, _FIRST_PAUSE_S, False
        while True:
            try:
                if self._channel is None:
                    opened, pause_s = self._connect(), _FIRST_PAUSE_S
                return opened if frame is None else self._exchange(frame)
            except grpc.RpcError as error:
                self.close()
                now = time.monotonic()
                cancelled = cancelled or error.code() is grpc.StatusCode.CANCELLED
                if cancelled:
                    patience_s = min(patience_s, _CANCELLED_S)
                deadline = now + patience_s if deadline is None else deadline
                if error.code() in _FINAL or now > deadline:
                    raise (
                        SessionCancelled("the server is gone")
                        if cancelled
                        else self._broken(error)
                    ) from error
                time.sleep(
                    min(pause_s * random.uniform(0.5, 1.5), max(deadline - now, 0.0))
                )
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            except SplitError:
                self.close()
                raise

    def _connect(self) -> pb.ServerFrame:
        ticket = self.ticket
        self._channel = open_channel(
            self.address, ticket.tls, ticket.authority.encode(), _CHANNEL_OPTIONS
        )
        call = self._channel.stream_stream(
            SESSION_METHOD, pb.DeviceFrame.SerializeToString, pb.ServerFrame.FromString
        )
        self._frames: queue.SimpleQueue[pb.DeviceFrame | None] = queue.SimpleQueue()
        self._replies = call(
            iter(self._frames.get, None), metadata=((TOKEN_KEY, ticket.token),)
        )
        software = f"flwr-splitfc {version('flwr-splitfc')}"
        hello = pb.Open(protocol=ticket.protocol, nonce=self._nonce, software=software)
        opened = self._exchange(pb.DeviceFrame(open=hello))
        if opened.WhichOneof("kind") != "opened":
            raise ProtocolError(
                f"the server answered {opened.WhichOneof('kind')!r} to Open"
            )
        self.reconnects += 1
        return opened

    def _exchange(self, frame: pb.DeviceFrame) -> pb.ServerFrame:
        self._frames.put(frame)
        self.uplink_bytes += frame.ByteSize()
        try:
            reply: pb.ServerFrame = next(self._replies)
        except StopIteration:
            raise ProtocolError(
                "the server ended the stream without an answer"
            ) from None
        self.downlink_bytes += reply.ByteSize()
        if reply.WhichOneof("kind") == "refused":
            raise error_from(reply.refused)
        if reply.number != frame.number:
            raise ProtocolError(
                f"the server answered frame {reply.number}, asked was {frame.number}"
            )
        return reply

    def _broken(self, error: grpc.RpcError) -> SplitError:
        status, what = (
            error.code(),
            f"split endpoint at {self.address}: {error.details()}",
        )
        if status is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return LimitExceeded(what)
        if status is grpc.StatusCode.UNIMPLEMENTED:
            return EndpointUnreachable(
                f"{what}; what listens there is no split endpoint"
            )
        if self.reconnects < 0 and is_loopback(split_address(self.address)[0]):
            what += (
                ". That address is this node's own machine: where the ServerApp runs on another one, "
                "tell its strategy host and address (run-config: split-host, split-address)"
            )
        return EndpointUnreachable(f"{what} ({status.name})")


def _override(address: str, by: str) -> str:
    """The ticket's address, or another host with its port, or another host and port."""
    if not by:
        return address
    host, port = split_address(by)
    return join_address(host, port or split_address(address)[1] or 0)
