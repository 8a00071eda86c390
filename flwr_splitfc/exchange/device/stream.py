"""The connection that carries a session: one gRPC call after another.

A call that breaks is followed by another one, and the frame that was not answered is
sent again. The server knows the session by its token and the nonce in `Open`, and a
frame by its number: each is applied once.
"""

import secrets
from importlib.metadata import version
from logging import getLogger

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

_FULL = grpc.StatusCode.UNAVAILABLE


class Stream:
    """Sends a device's frames and gets their answers, over as many calls as that takes.

    Parameters
    ----------
    ticket : Ticket
    address : str, optional
        ``host`` or ``host:port`` to connect to instead of the ticket's.

    Attributes
    ----------
    uplink_bytes, downlink_bytes : int
        Of all frames so far, those that were sent again included.
    reconnects : int
        How often the connection was opened again; -1 before it was opened at all.
    """

    def __init__(self, ticket: Ticket, address: str = "") -> None:
        self.ticket = ticket
        self.address = _overridden(ticket.address, address)
        self.uplink_bytes = 0
        self.downlink_bytes = 0
        self.reconnects = -1
        self._nonce = secrets.token_bytes(NONCE_BYTES)
        self._number = 0
        self._call: SessionCall | None = None

    def open(self) -> pb.Opened:
        """Open the session, and return what earlier turns left."""
        host, _ = split_address(self.address)
        if self.ticket.tls == "off" and not is_loopback(host):
            logger.warning(
                "Features and gradients go to %s in plaintext, as the ticket says",
                self.address,
            )
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

    def finish(self) -> None:
        """Let the stream end on both sides, after the last answer."""
        if self._call is not None:
            self._call.finish()
        self.close()

    def close(self) -> None:
        """End the connection, whatever state it is in."""
        if self._call is not None:
            self._call.close()
            self._call = None

    def _until_answered(
        self, frame: pb.DeviceFrame | None, patience_s: float
    ) -> pb.ServerFrame:
        """The answer to `frame`, or to `Open` if there is none."""
        retries = Retries(patience_s)
        while True:
            try:
                return self._try(frame, retries)
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

    def _try(self, frame: pb.DeviceFrame | None, retries: Retries) -> pb.ServerFrame:
        if self._call is None:
            self._call = SessionCall(self.address, self.ticket)
            opened = self._say_hello(self._call)
            if frame is None:
                return opened
        assert frame is not None
        retries.connected()
        return self._exchange(self._call, frame)

    def _say_hello(self, call: SessionCall) -> pb.ServerFrame:
        hello = pb.Open(
            protocol=self.ticket.protocol,
            nonce=self._nonce,
            software=f"flwr-splitfc {version('flwr-splitfc')}",
        )
        opened = self._exchange(call, pb.DeviceFrame(open=hello))
        kind = opened.WhichOneof("kind")
        if kind != "opened":
            raise ProtocolError(f"the server answered {kind!r} to Open")
        self.reconnects += 1
        return opened

    def _exchange(self, call: SessionCall, frame: pb.DeviceFrame) -> pb.ServerFrame:
        call.send(frame)
        self.uplink_bytes += frame.ByteSize()
        reply = call.receive()
        self.downlink_bytes += reply.ByteSize()
        if reply.WhichOneof("kind") == "refused":
            raise error_from(reply.refused)
        if reply.number != frame.number:
            raise ProtocolError(
                f"the server answered frame {reply.number}, asked was {frame.number}"
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
