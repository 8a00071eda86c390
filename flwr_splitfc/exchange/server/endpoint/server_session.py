"""One session as the server knows it: admitted, applied and ended exactly once."""

import hmac
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from logging import getLogger
from threading import Condition
from typing import NamedTuple, Protocol

from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.split_errors import (
    ProtocolError,
    SessionCancelled,
    SplitError,
    TicketExpired,
    TokenRefused,
)
from flwr_splitfc.exchange.protocol.ticket import PROTOCOLS
from flwr_splitfc.exchange.server.accounts.frame_traffic import (
    Moved,
    count_downlink,
    count_resent,
    count_uplink,
)
from flwr_splitfc.exchange.server.accounts.traffic import Traffic
from flwr_splitfc.exchange.server.turn.turn import Turn

_LEAST_NONCE_BYTES = 16
_MOST_NONCE_BYTES = 64

_LEAVE = pb.DeviceFrame(leave=pb.Leave())

logger = getLogger("flwr")


class Connection(Protocol):
    """The connection that carries a session."""

    def cancel(self) -> object:
        """End it."""


class _Exchanged(NamedTuple):
    """A frame, its answer and their payloads; None is an answer that goes nowhere."""

    frame: pb.DeviceFrame
    answer: pb.ServerFrame | None
    moved: Moved = Moved()


class ServerSession:
    """A turn, the secret that admits to it, and the connection that carries it.

    The connection may break and be opened again, by the process that opened it first.
    Frames are numbered and the last answers are kept, so that a frame which is sent
    again is answered again and not applied again.

    Parameters
    ----------
    turn : Turn
    answers : int
        How many are kept: as many as the device may wait for at once.

    Attributes
    ----------
    id : str
        For the log; the part of the token before the dot.
    turn : Turn
    opened_at, ended_at : float
        When the session began and was over, by `time.monotonic`; 0.0 before.
    left_at : float
        When the device was through, and left its stream to reply; 0.0 before.
    """

    def __init__(self, turn: Turn, answers: int) -> None:
        self.id = secrets.token_hex(4)
        self._secret = secrets.token_urlsafe(32)
        self.turn = turn
        self._make_ended: Callable[[], SplitError] | None = None
        self.opened_at = 0.0
        self.ended_at = 0.0
        self.left_at = 0.0
        # Guards what follows. It is never held while a frame is answered, or whoever
        # opens more connections meanwhile would hold a thread with each. `_busy` makes
        # frames, reconnections and the settling of the session come one after another.
        self._changed = Condition()
        self._nonce = b""
        self._answers: deque[pb.ServerFrame] = deque(maxlen=answers)
        # whether frames came again since the session was opened last
        self._resent = False
        # the last frame and its answer, until what need not come before it is done
        self._unfinished: _Exchanged | None = None
        self._connection: Connection | None = None
        # came while another one carried the session, and carries it from its first
        # frame on
        self._next: Connection | None = None
        self._unopened: Connection | None = None
        self._unopened_at = 0.0
        self._busy = False
        # for a slot
        self._waiting: set[Connection] = set()
        self._last_seen = time.monotonic()

    @property
    def token(self) -> str:
        """The session's id, a dot and its secret, as tickets carry it; never logged."""
        return f"{self.id}.{self._secret}"

    @property
    def ended(self) -> SplitError | None:
        """Why nothing more is accepted: a new error each time, as it may be raised."""
        return self._make_ended() if self._make_ended else None

    @property
    def opened(self) -> bool:
        """Whether the device has ever sent a frame."""
        return self.opened_at > 0

    @property
    def connected(self) -> bool:
        """Whether a connection carries it now."""
        return self._connection is not None

    @property
    def running(self) -> bool:
        """Whether it was opened and is not over."""
        return self.opened and not self.ended_at

    @property
    def silent_s(self) -> float:
        """Seconds since the device was heard of, or lost; 0 if the server is late."""
        if self._busy or self._waiting:
            return 0.0
        return time.monotonic() - self._last_seen

    @property
    def unopened_s(self) -> float:
        """Seconds that a connection is there on which the device opens nothing.

        0 if there is none, or if the server is late.
        """
        if self._unopened is None or self._busy or self._waiting:
            return 0.0
        # the device may have waited for its slot meanwhile
        return time.monotonic() - max(self._unopened_at, self._last_seen)

    @property
    def turn_s(self) -> float:
        """Seconds since it was opened, which it was."""
        return time.monotonic() - self.opened_at

    def check(self, token: str) -> None:
        """Refuse every token but this session's own.

        The time that it takes does not tell an intruder how much of a guess was right.
        """
        if not hmac.compare_digest(self.token.encode(), token.encode()):
            raise TokenRefused("unknown token")

    def await_open(self, connection: Connection) -> None:
        """Note a connection on which Open is to come.

        There is one at most, and none beside it that opened the session and sent
        nothing since, so that a token holds no more than one thread.
        """
        with self._changed:
            replaced = self._unopened, self._next
            # first: `unopened_s` may be asked for between the two
            self._unopened_at = time.monotonic()
            self._unopened, self._next = connection, None
            self._changed.notify_all()
        _cancel(*replaced)

    @contextmanager
    def waiting(self, connection: Connection) -> Iterator[None]:
        """Note that a connection waits for a slot: the device is there."""
        with self._changed:
            self._waiting.add(connection)
        try:
            yield
        finally:
            with self._changed:
                self._last_seen = time.monotonic()
                self._waiting.remove(connection)

    def open(
        self,
        frame: pb.DeviceFrame,
        connection: Connection,
        told: pb.ServerFrame | None = None,
    ) -> pb.ServerFrame:
        """Take a new connection, the first or the next.

        Where another one carries the session, that stays until the new one's first
        frame: the new one may have come late, and the other be the device's.

        Parameters
        ----------
        frame : DeviceFrame
            Open.
        connection : Connection
        told : ServerFrame, optional
            What the device was told before on this connection, which is counted.

        Raises
        ------
        SplitError
            For another protocol, another process, or a session that is over.
        """
        self.check_open(frame)
        nonce = frame.open.nonce
        with self._working(connection):
            # again: another process may have come first meanwhile
            self._check_nonce(nonce)
            if self.ended:
                raise self.ended
            with self._changed:
                replaced, self._next = self._next, connection
                # while the last frame was finished, a later one may have come
                if self._unopened is connection:
                    self._unopened = None
            _cancel(replaced)
            if not self.connected:
                self._carried_by(connection)
            self._nonce = nonce
            self._resent = False
            if self.opened:
                self.turn.traffic.reconnects += 1
            else:
                self._begin()
            # it goes with another frame, and is no round trip of its own
            answer = pb.ServerFrame(opened=pb.Opened())
            self._last_seen = time.monotonic()
            self._count(_Exchanged(frame, answer))
            if told is not None:
                count_downlink(self.turn.traffic, told)
            return answer

    def _carried_by(self, connection: Connection) -> bool:
        """Whether a connection carries the session, which moves to the next one."""
        earlier = None
        with self._changed:
            if self._next is connection:
                earlier, self._connection = self._connection, connection
                self._next = None
            carried = self._connection is connection
        # It may look alive long after it broke. Its thread finds out in `answer` that
        # it does not carry the session any more.
        _cancel(earlier)
        return carried

    def check_open(self, frame: pb.DeviceFrame) -> None:
        """Refuse a first frame that cannot open the session.

        Raises
        ------
        SplitError
            For another protocol, another process, or a session that is over.
        """
        _check_open(frame)
        self._check_nonce(frame.open.nonce)
        if self.ended:
            raise self.ended

    def _check_nonce(self, nonce: bytes) -> None:
        # before `ended`: who is not the session's process is told nothing of it
        if self._nonce and not hmac.compare_digest(self._nonce, nonce):
            raise TokenRefused(
                "this token was used before, by another process or an earlier session"
            )

    def _begin(self) -> None:
        self.opened_at = time.monotonic()
        try:
            self.turn.open()
        except Exception as error:
            failure = _failure(error, "Open")
            self.end(failure)
            raise failure from error

    def answer(
        self, frame: pb.DeviceFrame, connection: Connection
    ) -> pb.ServerFrame | None:
        """Answer a frame after Open, which came in a stream.

        Returns
        -------
        pb.ServerFrame or None
            None if the session has moved on to another connection, or if the frame
            came late: it was applied long ago. The stream ends, and not the session.

        Raises
        ------
        SplitError
            The frame is refused, and with it the session.
        """
        with self._working():
            if self._is_late(frame.number) or not self._carried_by(connection):
                return None
            # Its answer got lost on the way: the frame was applied already.
            answer = self._answer_to(frame.number)
            if answer is not None and not self.ended:
                self._count_again(frame, answer)
                return answer
            return self._answer_next(frame)

    def _is_late(self, number: int) -> bool:
        """Whether a frame came before those of which the answers are kept.

        The device has gone on since. It was held up on a connection that the device
        gave up, or came twice.
        """
        return bool(self._answers) and 0 < number < self._answers[0].number

    def _answer_to(self, number: int) -> pb.ServerFrame | None:
        """Return the answer to a frame, if it is kept."""
        for answer in self._answers:
            if answer.number == number:
                return answer
        return None

    def finish(self) -> None:
        """Do what the last answer did not wait for, now that it was sent.

        Whatever is done next with the session does it before, if this is never called.

        Raises
        ------
        SplitError
            It failed, and with it the session.
        """
        with self._alone():
            self._finish()

    def digest(self) -> None:
        """Take the last step's payloads into the session's digest.

        Whatever needs the digest does it, if this is never called.
        """
        with self._alone():
            self.turn.digest.catch_up()

    def deliver(self, frame: pb.DeviceFrame) -> pb.ServerFrame:
        """Answer a frame that came in a message, on whatever connection the session is.

        The first one opens the session, and Close is the device's last word: the answer
        goes nowhere.

        Raises
        ------
        SplitError
            The frame is refused, and with it the session.
        """
        with self._working():
            if not self.ended and not self.opened:
                self._begin()
            answer = self._answer_next(frame, in_message=True)
            self._finish()
            return answer

    def leave(self, connection: Connection) -> bool:
        """Note that the device is through, and that Close comes with its reply.

        Returns
        -------
        bool
            Whether the connection carried the session.
        """
        with self._working():
            if not self._carried_by(connection):
                return False
            self._connection = None
            self._last_seen = self.left_at = time.monotonic()
            self.turn.end_steps()
            return True

    def _answer_next(
        self, frame: pb.DeviceFrame, *, in_message: bool = False
    ) -> pb.ServerFrame:
        """Answer the frame that follows the last one."""
        if self.ended:
            raise self.ended
        last_number = self._answers[-1].number if self._answers else 0
        if frame.number != last_number + 1:
            raise ProtocolError(f"frame {frame.number} came after frame {last_number}")
        answer = self._apply(frame)
        answer.number = frame.number
        self._answers.append(answer)
        if not in_message:
            self.left_at = 0.0
        self._last_seen = time.monotonic()
        counted: pb.ServerFrame | None = answer
        if self.turn.done:
            self.ended_at = time.monotonic()
        if self.turn.done and in_message:
            self._count_leave()
            counted = None
        else:
            self.turn.traffic.round_trips += 1
        self._unfinished = _Exchanged(frame, counted, self.turn.moved)
        return answer

    def _finish(self) -> None:
        unfinished, self._unfinished = self._unfinished, None
        if unfinished is None:
            return
        self._count(unfinished)
        try:
            self.turn.finish()
        except SplitError:
            raise
        except Exception as error:
            raise _failure(error, f"frame {unfinished.frame.number}") from error

    def _apply(self, frame: pb.DeviceFrame) -> pb.ServerFrame:
        try:
            return self.turn.answer(frame)
        except SplitError:
            raise
        except Exception as error:
            # The frame may have been applied. It must not be applied again.
            raise _failure(error, f"frame {frame.number}") from error

    def lost(self, connection: Connection) -> bool:
        """Note that a connection is gone.

        Returns
        -------
        bool
            Whether it still carried the session, which is not over.
        """
        with self._changed:
            if self._unopened is connection:
                self._unopened = None
            if self._next is connection:
                self._next = None
            if self._connection is not connection:
                return False
            self._connection, self._next = self._next, None
            self._last_seen = time.monotonic()
            return self.running and not self.connected

    @contextmanager
    def _working(self, unopened: Connection | None = None) -> Iterator[None]:
        """Work on the turn, `_alone`, and with the last frame finished."""
        with self._alone(unopened):
            try:
                self._finish()
            except SplitError as refusal:
                self.end(refusal)
            yield

    @contextmanager
    def _alone(self, unopened: Connection | None = None) -> Iterator[None]:
        """Wait until nothing else works on the turn, and keep others waiting.

        Parameters
        ----------
        unopened : Connection, optional
            A connection to open, which gives up when another one comes in its place.

        Raises
        ------
        SessionCancelled
            If one has.
        """
        with self._changed:
            while self._busy and not self._is_replaced(unopened):
                self._changed.wait()
            if self._is_replaced(unopened):
                raise SessionCancelled("a later connection came for the session")
            self._busy = True
        try:
            yield
        finally:
            with self._changed:
                self._busy = False
                self._abandon_if_over()
                self._changed.notify_all()

    def _is_replaced(self, unopened: Connection | None) -> bool:
        return unopened is not None and self._unopened is not unopened

    def settle(self) -> None:
        """Keep what the device left, which has replied; accept nothing more."""
        with self._working():
            self.end(TicketExpired("its device has replied"))
            self.turn.settle()

    def end(self, why: SplitError) -> None:
        """Accept nothing more. The connection stays, to say why, until `hang_up`.

        It does not wait for the frame that is being answered, if there is one.
        """
        with self._changed:
            if self._make_ended is None:
                self._make_ended = remade(why)
                self.ended_at = self.ended_at or time.monotonic()
            self._abandon_if_over()

    def _abandon_if_over(self) -> None:
        """Let the turn go, but not under a frame that is being answered."""
        if self._make_ended is not None and not self._busy:
            self.turn.abandon()

    def hang_up(self) -> None:
        """End the connections of a session that is over.

        One that waits for a slot says why, and ends by itself.
        """
        # the first becomes the second, and that the third: asked in this order, it is
        # one of them
        for connection in (self._unopened, self._next, self._connection):
            if connection not in self._waiting:
                _cancel(connection)

    def take_traffic(self) -> Traffic:
        """Return what was counted since the last time."""
        with self._working():
            traffic = self.turn.traffic
            self.turn.traffic = Traffic()
        return traffic

    def _count(self, exchanged: _Exchanged) -> None:
        traffic, moved = self.turn.traffic, exchanged.moved
        count_uplink(traffic, exchanged.frame, moved.uplink)
        if exchanged.answer is not None:
            count_downlink(traffic, exchanged.answer, moved.downlink)

    def _count_leave(self) -> None:
        # with Close: which of the two comes first must not show in what is counted
        was_in_a_stream = bool(self._nonce)
        if was_in_a_stream:
            self._count(_Exchanged(_LEAVE, None))

    def _count_again(self, frame: pb.DeviceFrame, answer: pb.ServerFrame) -> None:
        self._last_seen = time.monotonic()
        if not self._resent:
            # a device sends all that was not answered at once
            self.turn.traffic.round_trips += 1
        self._resent = True
        count_resent(self.turn.traffic, frame, answer)


def _cancel(*connections: Connection | None) -> None:
    """End those that are there."""
    for connection in connections:
        if connection is not None:
            connection.cancel()


def _check_open(frame: pb.DeviceFrame) -> None:
    """Refuse a first frame that is no Open which this server understands."""
    hello = frame.open
    if frame.WhichOneof("kind") != "open" or frame.number != 0:
        raise ProtocolError("the first frame must be Open, with number 0")
    if hello.protocol not in PROTOCOLS:
        raise ProtocolError(
            f"this server speaks protocols {list(PROTOCOLS)}, "
            f"the device {hello.protocol}"
        )
    if not _LEAST_NONCE_BYTES <= len(hello.nonce) <= _MOST_NONCE_BYTES:
        raise ProtocolError(
            f"the nonce has {len(hello.nonce)} bytes, "
            f"wanted {_LEAST_NONCE_BYTES} to {_MOST_NONCE_BYTES}"
        )


def remade(error: SplitError) -> Callable[[], SplitError]:
    """Return what makes an error of the same class and text.

    An error that is kept must not be raised: each time adds to its traceback, whose
    frames hold streams and whatever else there was.
    """
    return partial(type(error), str(error))


def _failure(error: Exception, what: str) -> SplitError:
    """Return the error that ends a session for a fault of the server's own."""
    logger.error("The server failed in answering %s of a session", what, exc_info=error)
    return SplitError(
        f"the server failed in answering {what}: {type(error).__name__}; see its log"
    )
