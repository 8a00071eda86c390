"""One session as the server knows it: admitted once, applied exactly once, ended once."""

import hmac
import secrets
import time
from threading import Lock
from typing import Protocol

from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.errors import (
    ProtocolError,
    SplitError,
    TicketExpired,
    TokenRefused,
)
from flwr_splitfc.exchange.protocol.ticket import PROTOCOLS
from flwr_splitfc.exchange.server.traffic import Traffic
from flwr_splitfc.exchange.server.turn import (
    Turn,
    count_downlink,
    count_resent,
    count_uplink,
)


class Connection(Protocol):
    """What a session is on."""

    def cancel(self) -> object:
        """End it."""


class Admission:
    """A turn, the secret that admits to it, and the connection that it is on.

    The connection may break and be opened again, by the process that opened it first.
    Frames are numbered and the last answer is kept, so that a frame which is sent again
    is answered again and not applied again.

    Attributes
    ----------
    id : str
        For the log; the part of the token before the dot.
    token : str
        What the ticket carries; never logged.
    turn : Turn
    ended : SplitError or None
        Why nothing more is accepted.
    opened_at, ended_at : float
        When the session began and was over, by `time.monotonic`; 0.0 before.
    """

    def __init__(self, turn: Turn) -> None:
        self.id = secrets.token_hex(4)
        self._secret = secrets.token_urlsafe(32)
        self.turn = turn
        self.ended: SplitError | None = None
        self.opened_at = 0.0
        self.ended_at = 0.0
        self._lock = Lock()
        self._nonce = b""
        self._answered = pb.ServerFrame()
        self._connection: Connection | None = None
        self._unopened: Connection | None = None
        self._busy = False
        self._last_seen = time.monotonic()

    @property
    def token(self) -> str:
        """The session's id and its secret."""
        return f"{self.id}.{self._secret}"

    @property
    def opened(self) -> bool:
        """Whether a device was ever here."""
        return bool(self._nonce)

    @property
    def connected(self) -> bool:
        """Whether it is on a connection now."""
        return self._connection is not None

    @property
    def running(self) -> bool:
        """Whether it was opened and is not over."""
        return self.opened and not self.ended_at

    def check(self, token: str) -> None:
        """Raise unless `token` is this session's; takes the same time whatever is wrong."""
        if not hmac.compare_digest(self.token.encode(), token.encode()):
            raise TokenRefused("unknown token")

    def await_open(self, connection: Connection) -> None:
        """Note a connection on which Open is to come; there is one at most, so that a token holds one thread."""
        with self._lock:
            unopened, self._unopened = self._unopened, connection
        if unopened is not None:
            unopened.cancel()

    def open(self, frame: pb.DeviceFrame, connection: Connection) -> pb.ServerFrame:
        """Move to a new connection, the first or the next.

        Raises
        ------
        SplitError
            For another protocol, another process, or a session that is over.
        """
        hello = frame.open
        if frame.WhichOneof("kind") != "open" or frame.number != 0:
            raise ProtocolError("the first frame must be Open, with number 0")
        if hello.protocol not in PROTOCOLS:
            raise ProtocolError(
                f"this server speaks protocols {list(PROTOCOLS)}, the device {hello.protocol}"
            )
        if not 16 <= len(hello.nonce) <= 64:
            raise ProtocolError(
                f"the nonce has {len(hello.nonce)} bytes, wanted 16 to 64"
            )
        with self._lock:
            if self.opened and not hmac.compare_digest(self._nonce, hello.nonce):
                raise TokenRefused("this token was used before, by another process")
            if self.ended:
                raise self.ended
            self.hang_up()
            self._unopened = None
            first, self._nonce, self._connection = (
                not self.opened,
                hello.nonce,
                connection,
            )
            if first:
                self.opened_at = time.monotonic()
                self._answered = self.turn.open()
            self.turn.traffic.reconnects += not first
            return self._count(
                frame,
                pb.ServerFrame(opened=pb.Opened())
                if self._answered.number
                else self._answered,
            )

    def answer(
        self, frame: pb.DeviceFrame, connection: Connection
    ) -> pb.ServerFrame | None:
        """The answer to a frame after Open; None if the session has moved on to another connection.

        Raises
        ------
        SplitError
            The frame is refused, and with it the session.
        """
        with self._lock:
            if self._connection is not connection:
                return None
            if self.ended:
                raise self.ended
            if frame.number == self._answered.number > 0:
                return self._count(frame, self._answered, again=True)
            if frame.number != self._answered.number + 1:
                raise ProtocolError(
                    f"frame {frame.number} came after frame {self._answered.number}"
                )
            self._busy, began = True, time.perf_counter()
            try:
                answered = self.turn.answer(frame)
            finally:
                self._busy = False
                self.turn.busy_seconds += time.perf_counter() - began
                if self.ended:
                    self.turn.forget()
            answered.number = frame.number
            self._answered = answered
            if self.turn.done:
                self.ended_at = time.monotonic()
            return self._count(frame, answered)

    def _count(
        self, frame: pb.DeviceFrame, answered: pb.ServerFrame, *, again: bool = False
    ) -> pb.ServerFrame:
        self._last_seen = time.monotonic()
        self.turn.traffic.round_trips += 1
        if again:
            count_resent(self.turn.traffic, frame, answered)
        else:
            count_uplink(self.turn.traffic, frame)
            count_downlink(self.turn.traffic, answered)
        return answered

    def lost(self, connection: Connection) -> bool:
        """Note that a connection is gone; whether the session was still on it, and not over."""
        with self._lock:
            if self._unopened is connection:
                self._unopened = None
            if self._connection is not connection:
                return False
            self._connection = None
            self._last_seen = time.monotonic()
            return self.running

    def settle(self) -> None:
        """The device has replied to the strategy: hand back what it trained, and accept nothing more."""
        with self._lock:
            self.end(TicketExpired("its device has replied"))
            self.turn.settle()

    def end(self, why: SplitError) -> None:
        """Accept nothing more. The connection stays, to say why, until `hang_up`."""
        if self.ended is None:
            self.ended, self.ended_at = why, self.ended_at or time.monotonic()
            self.turn.forget()

    def hang_up(self) -> None:
        """End the connection, if there is one."""
        if (connection := self._connection) is not None:
            connection.cancel()

    def take_traffic(self) -> Traffic:
        """What was counted since the last time."""
        with self._lock:
            traffic, self.turn.traffic = self.turn.traffic, Traffic()
        return traffic

    def silent_s(self) -> float:
        """Seconds since the device was last heard of, or lost; 0 while it waits for an answer."""
        return 0.0 if self._busy else time.monotonic() - self._last_seen
