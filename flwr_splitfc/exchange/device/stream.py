"""The connection that carries a session: one gRPC call after another.

A call begins with `Open` and a frame, which go together: a round trip for both. A call
that breaks is followed by another one, and the frame that was not answered is sent
again. The server knows the session by its token and the nonce in `Open`, and a frame by
its number: each is applied once.
"""

import secrets
import time
from collections.abc import Callable
from importlib.metadata import version
from logging import getLogger
from typing import TypeVar

import grpc

from flwr_splitfc.exchange.device.retries import Retries
from flwr_splitfc.exchange.device.session_call import SessionCall, refusal_in
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.address import (
    is_loopback,
    join_address,
    split_address,
)
from flwr_splitfc.exchange.protocol.rpc import NONCE_BYTES
from flwr_splitfc.exchange.protocol.split_errors import (
    EndpointUnreachable,
    LimitExceeded,
    ProtocolError,
    SessionCancelled,
    SplitError,
    error_from,
)
from flwr_splitfc.exchange.protocol.ticket import Ticket

# an address that was never reached is more likely wrong than busy
_FIRST_CONNECT_S = 10.0

logger = getLogger("flwr")

_Result = TypeVar("_Result")

_FULL = grpc.StatusCode.UNAVAILABLE


class Stream:
    """Sends a device's frames and gets their answers, over as many calls as that takes.

    Parameters
    ----------
    ticket : Ticket
    address : str, optional
        ``host`` or ``host:port`` to connect to instead of the ticket's.
    closes_by_reply : bool (default: False)
        Whether `Close` goes with the reply to Flower's message. The server is then told
        that the device leaves.

    Attributes
    ----------
    uplink_bytes, downlink_bytes : int
        Of all frames so far, those that were sent again included.
    reconnects : int
        How often the connection was opened again; -1 before it was opened at all.
    connecting_s : float
        Seconds in the first `ask` before a connection stood.
    closing : DeviceFrame or None
        `Close`, where it goes with the reply.
    """

    def __init__(
        self, ticket: Ticket, address: str = "", *, closes_by_reply: bool = False
    ) -> None:
        self.ticket = ticket
        self.address = _overridden(ticket.address, address)
        self.closes_by_reply = closes_by_reply
        self.uplink_bytes = 0
        self.downlink_bytes = 0
        self.reconnects = -1
        self.connecting_s = 0.0
        self.closing: pb.DeviceFrame | None = None
        self._nonce = secrets.token_bytes(NONCE_BYTES)
        self._number = 0
        self._call: SessionCall | None = None
        # of the last frame that was sent in this call
        self._sent = 0

    def ask(self, frame: pb.DeviceFrame) -> pb.ServerFrame:
        """Send one frame and wait for its answer.

        Raises
        ------
        SplitError
            One of its kinds if the server refuses the frame, or cannot be reached, or
            not again, in time.
        """
        self._number += 1
        frame.number = self._number
        if self.closes_by_reply and frame.WhichOneof("kind") == "close":
            self.closing = frame
            return pb.ServerFrame(number=frame.number, closed=pb.Closed())
        if self.reconnects < 0:
            self._open_first(frame)
        patience_s = self.ticket.reconnect_timeout_s
        return self._until_done(lambda retries: self._try(frame, retries), patience_s)

    def finish(self) -> None:
        """Let the stream end on both sides, after the last answer."""
        if self._call is None:
            return
        if self.closes_by_reply:
            # the reply to Flower does not wait for it
            self._call.leave()
        else:
            self._call.finish()
        self._call = None

    def close(self) -> None:
        """End the connection, whatever state it is in."""
        if self._call is not None:
            self._call.close()
            self._call = None

    def _open_first(self, frame: pb.DeviceFrame) -> None:
        """Open the session for the first time, and send the first frame."""
        host, _ = split_address(self.address)
        if self.ticket.tls == "off" and not is_loopback(host):
            logger.warning(
                "Features and gradients go to %s in plaintext, as the ticket says",
                self.address,
            )
        patience_s = min(_FIRST_CONNECT_S, self.ticket.reconnect_timeout_s)
        began = time.perf_counter()
        call = self._until_done(lambda retries: self._open(frame, retries), patience_s)
        self.connecting_s = max(call.connected_at - began, 0.0)

    def _until_done(
        self, attempt: Callable[[Retries], _Result], patience_s: float
    ) -> _Result:
        """What `attempt` returns as soon as the connection does not break in it."""
        retries = Retries(patience_s)
        while True:
            try:
                return attempt(retries)
            except grpc.RpcError as error:
                self.close()
                refusal = refusal_in(error)
                # a server that is full now may have room soon
                if refusal is not None and error.code() is not _FULL:
                    raise refusal from None
                retries.failed(error.code())
                if retries.given_up:
                    named = self._named(error, retries.cancelled)
                    raise refusal or named from error
                retries.pause()
            except SplitError:
                self.close()
                raise

    def _try(self, frame: pb.DeviceFrame, retries: Retries) -> pb.ServerFrame:
        call = self._call or self._open(frame, retries)
        retries.connected()
        if self._sent < frame.number:
            self._send(call, frame)
        return self._receive(call, frame.number)

    def _open(self, frame: pb.DeviceFrame, retries: Retries) -> SessionCall:
        """Open the session on a new connection, and send a frame with `Open`."""
        call = self._call = SessionCall(self.address, self.ticket)
        self._sent = 0
        hello = pb.Open(
            protocol=self.ticket.protocol,
            nonce=self._nonce,
            software=f"flwr-splitfc {version('flwr-splitfc')}",
        )
        self._send(call, pb.DeviceFrame(open=hello))
        if not retries.asks_for_room:
            self._send(call, frame)
        opened = self._receive(call, 0)
        kind = opened.WhichOneof("kind")
        if kind != "opened":
            raise ProtocolError(f"the server answered {kind!r} to Open")
        self.reconnects += 1
        return call

    def _send(self, call: SessionCall, frame: pb.DeviceFrame) -> None:
        call.send(frame)
        self._sent = frame.number
        self.uplink_bytes += frame.ByteSize()

    def _receive(self, call: SessionCall, number: int) -> pb.ServerFrame:
        """Wait for the answer to the frame of that number."""
        reply = call.receive()
        self.downlink_bytes += reply.ByteSize()
        if reply.WhichOneof("kind") == "refused":
            raise error_from(reply.refused)
        if reply.number != number:
            raise ProtocolError(
                f"the server answered frame {reply.number}, asked was {number}"
            )
        return reply

    def _named(self, error: grpc.RpcError, cancelled: bool) -> SplitError:
        """The error to raise for gRPC's."""
        if cancelled:
            return SessionCancelled("the server is gone")
        code = error.code()
        what = f"split endpoint at {self.address}: {error.details()}"
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return LimitExceeded(what)
        if code is grpc.StatusCode.UNIMPLEMENTED:
            return EndpointUnreachable(
                f"{what}; what listens there is no split endpoint"
            )
        host, _ = split_address(self.address)
        if self.reconnects < 0 and is_loopback(host):
            what += (
                ". That address is this node's own machine: where the ServerApp runs "
                "on another one, tell its strategy host and address "
                "(run-config: split-host, split-address)"
            )
        return EndpointUnreachable(f"{what} ({code.name})")


def _overridden(address: str, by: str) -> str:
    """The ticket's address, with the host or the host and port of another in its place.

    An empty `by` replaces nothing.
    """
    if not by:
        return address
    host, port = split_address(by)
    if port is None:
        _, port = split_address(address)
    return join_address(host, port or 0)
