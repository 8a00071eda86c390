"""The connection that carries a session: one gRPC call after another.

A call begins with `Open` and a frame, which go together: a round trip for both. A call
that breaks is followed by another one, and the frames that were not answered are sent
again. The server knows the session by its token and the nonce in `Open`, and a frame by
its number: each is applied once.
"""

import secrets
import time
from collections import deque
from collections.abc import Callable
from importlib.metadata import version
from logging import getLogger
from typing import TypeVar

import grpc

from flwr_splitfc.exchange.device.retries import Retries
from flwr_splitfc.exchange.device.session_call import SessionCall, refusal_in
from flwr_splitfc.exchange.device.used_tokens import check_unused, note_used
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.address import (
    is_loopback,
    join_address,
    split_address,
)
from flwr_splitfc.exchange.protocol.frame_bytes import parse_answer
from flwr_splitfc.exchange.protocol.rpc import NONCE_BYTES
from flwr_splitfc.exchange.protocol.split_errors import (
    MOST_DETAIL_CHARACTERS,
    EndpointUnreachable,
    LimitExceeded,
    ProtocolError,
    SessionCancelled,
    SplitError,
    error_from,
)
from flwr_splitfc.exchange.protocol.ticket import Ticket
from flwr_splitfc.exchange.protocol.told_text import one_line

# an address that was never reached is more likely wrong than busy
_FIRST_CONNECT_S = 10.0

# With the keepalive before it, less than the server waits for a connection to come
# back: it may have seen the break at once.
_PING_TIMEOUT_S = 30.0
# a line that is only slow gets so many times as long after each break
_PING_TIMEOUT_GROWTH = 4.0

logger = getLogger("flwr")

_Result = TypeVar("_Result")

_FULL = grpc.StatusCode.UNAVAILABLE
# gRPC's words where nobody listens
_NOBODY = "Failed to connect to remote host"
# and where a connection seems to be dead
_NO_PING = "ping timeout"


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
    round_trips : int
        How many followed one another: frames under way at once share theirs.
    connecting_s : float
        Seconds before the first connection stood, and in the server's queue.
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
        self.round_trips = 0
        self.connecting_s = 0.0
        self.closing: pb.DeviceFrame | None = None
        self._nonce = secrets.token_bytes(NONCE_BYTES)
        self._number = 0
        self._unanswered: deque[pb.DeviceFrame] = deque()
        # for each of these, the round trips that are over when its answer comes
        self._trips_then: deque[int] = deque()
        # answers that came before they were asked for, by number
        self._came: dict[int, pb.ServerFrame] = {}
        self._call: SessionCall | None = None
        self._ping_timeout_s = _PING_TIMEOUT_S
        # of the last frame that was sent in this call
        self._sent = 0

    def ask(self, frame: pb.DeviceFrame) -> pb.ServerFrame:
        """Send one frame and wait for its answer, with all others answered.

        Raises
        ------
        SplitError
            As `receive`.
        """
        while self._unanswered:
            self._take_answer()
        if self.closes_by_reply and frame.WhichOneof("kind") == "close":
            self._number += 1
            frame.number = self._number
            self.closing = frame
            return pb.ServerFrame(number=frame.number, closed=pb.Closed())
        self.send(frame)
        return self.receive(frame.number)

    def send(self, frame: pb.DeviceFrame) -> None:
        """Send a frame, after those that are not answered yet.

        The first one waits for `receive`, which opens the connection.

        Raises
        ------
        SplitError
            As `receive`.
        """
        # of the answers that may get lost on their way, the server keeps so many
        while len(self._unanswered) >= self.ticket.pipeline_depth:
            self._take_answer()
        self._number += 1
        frame.number = self._number
        self._unanswered.append(frame)
        self._trips_then.append(self.round_trips + 1)
        if self._call is not None:
            self._send(self._call, frame)

    def receive(self, number: int) -> pb.ServerFrame:
        """Wait for the answer to the frame of that number.

        Raises
        ------
        SplitError
            One of its kinds if the server refuses the frame, or cannot be reached, or
            not again, in time.
        """
        while number not in self._came:
            self._take_answer()
        return self._came.pop(number)

    def _take_answer(self) -> None:
        """Wait for the answer to the first frame that has none."""
        if self.reconnects < 0:
            self._open_first()
        reply = self._until_done(self._try, self.ticket.reconnect_timeout_s)
        self.round_trips = self._trips_then.popleft()
        self._came[reply.number] = reply

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

    def _open_first(self) -> None:
        """Open the session for the first time, and send what waits."""
        check_unused(self.ticket.token)
        host, _ = split_address(self.address)
        if self.ticket.tls == "off" and not is_loopback(host):
            logger.warning(
                "Features and gradients go to %s in plaintext, as the ticket says",
                self.address,
            )
        patience_s = min(_FIRST_CONNECT_S, self.ticket.reconnect_timeout_s)
        began = time.perf_counter()
        call = self._until_done(self._open, patience_s)
        note_used(self.ticket.token)
        self.connecting_s += max(call.connected_at - began, 0.0)

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
                if _NO_PING in str(error.details()):
                    # perhaps it was only slow: a ping comes behind what is under way
                    self._ping_timeout_s *= _PING_TIMEOUT_GROWTH
                refusal = refusal_in(error)
                if refusal is None:
                    retries.failed(error.code())
                elif error.code() is _FULL:
                    # as long as the server says so, it is there
                    retries.told_to_come_again()
                else:
                    raise refusal from None
                if retries.given_up:
                    raise self._named(error, retries.cancelled) from error
                retries.pause()
            except SplitError:
                self.close()
                raise

    def _try(self, retries: Retries) -> pb.ServerFrame:
        call = self._call or self._open(retries)
        retries.connected()
        self._send_unanswered(call)
        reply = self._receive(call, self._unanswered[0].number)
        self._unanswered.popleft()
        return reply

    def _open(self, retries: Retries) -> SessionCall:
        """Open the session on a new connection, and send frames with `Open`."""
        call = SessionCall(self.address, self.ticket, self._ping_timeout_s)
        self._call = call
        self._sent = 0
        hello = pb.Open(
            protocol=self.ticket.protocol,
            nonce=self._nonce,
            software=f"flwr-splitfc {version('flwr-splitfc')}",
        )
        self._send(call, pb.DeviceFrame(open=hello))
        if not retries.asks_for_room:
            self._send_unanswered(call)
        kind = self._answer_to_open(call)
        if kind == "waiting":
            retries.waits()
            came = time.perf_counter()
            kind = self._answer_to_open(call)
            self.connecting_s += time.perf_counter() - came
        if kind != "opened":
            raise ProtocolError(f"the server answered {kind!r} to Open")
        self.reconnects += 1
        return call

    def _answer_to_open(self, call: SessionCall) -> str | None:
        answer = self._receive(call, 0)
        kind: str | None = answer.WhichOneof("kind")
        if kind == "waiting":
            logger.info(
                "The server has as many sessions as it takes at once: %s is number %d "
                "in its queue",
                self.ticket.device,
                answer.waiting.place,
            )
        return kind

    def _send_unanswered(self, call: SessionCall) -> None:
        """Send the frames that did not go out on this call."""
        for frame in self._unanswered:
            if frame.number > self._sent:
                self._send(call, frame)

    def _send(self, call: SessionCall, frame: pb.DeviceFrame) -> None:
        data = frame.SerializeToString()
        call.send(data)
        self._sent = frame.number
        self.uplink_bytes += len(data)

    def _receive(self, call: SessionCall, number: int) -> pb.ServerFrame:
        """Wait for the answer to the frame of that number."""
        data = call.receive()
        self.downlink_bytes += len(data)
        try:
            reply = parse_answer(data)
        except ProtocolError as error:
            raise ProtocolError(f"the server's answer: {error}") from error
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
        details = one_line(str(error.details()), MOST_DETAIL_CHARACTERS)
        what = f"split endpoint at {self.address}: {details}"
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return LimitExceeded(what)
        if code is grpc.StatusCode.UNIMPLEMENTED:
            return EndpointUnreachable(
                f"{what}; what listens there is no split endpoint"
            )
        if self.reconnects < 0 and self._is_elsewhere(error):
            what += (
                ". That address is this node's own machine: where the ServerApp runs "
                "on another one, tell its strategy host and address "
                "(run-config: split-host, split-address)"
            )
        return EndpointUnreachable(f"{what} ({code.name})")

    def _is_elsewhere(self, error: grpc.RpcError) -> bool:
        """Whether the endpoint is perhaps on another machine than this address says."""
        host, _ = split_address(self.address)
        # otherwise somebody took the connection: a full server, or a wrong certificate
        return is_loopback(host) and _NOBODY in str(error.details())


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
