"""The service that answers the frames of sessions, in streams and in messages."""

from collections.abc import Callable, Iterator
from functools import partial
from logging import DEBUG, INFO, WARNING
from typing import NoReturn, TypeVar

import grpc

from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.frame_bytes import parse_frame
from flwr_splitfc.exchange.protocol.rpc import REFUSED_KEY, TOKEN_KEY
from flwr_splitfc.exchange.protocol.split_errors import (
    MOST_DETAIL_CHARACTERS,
    ProtocolError,
    SessionCancelled,
    SplitError,
    TokenRefused,
)
from flwr_splitfc.exchange.server.accounts.frame_traffic import count_downlink
from flwr_splitfc.exchange.server.endpoint.line_pace import LinePace, LinePaces
from flwr_splitfc.exchange.server.endpoint.server_session import ServerSession
from flwr_splitfc.exchange.server.endpoint.session_log import log_session
from flwr_splitfc.exchange.server.endpoint.session_registry import SessionRegistry
from flwr_splitfc.exchange.server.endpoint.session_slots import (
    NoRoom,
    Place,
    SessionSlots,
)
from flwr_splitfc.exchange.server.endpoint.step_workers import StepWorkers
from flwr_splitfc.exchange.server.endpoint.turn_accounts import TurnAccounts
from flwr_splitfc.exchange.server.turn.limits import Limits

_MOST_OPEN_BYTES = 1024
# of connections that are of no session, and of those of one: either could fill a disk
_MOST_LINES = 10
_WINDOW_S = 10.0

_Reply = TypeVar("_Reply", pb.ServerFrame, pb.ServerFrame | None)


class SessionService:
    """Answers the frames of sessions, and ends sessions.

    Parameters
    ----------
    registry : SessionRegistry
        Knows which token admits to which session.
    accounts : TurnAccounts
        Where what sessions moved is entered.
    limits : Limits
    steps_at_once : int
        How many frames to answer at the same time, at least, as the server half wants.
    """

    def __init__(
        self,
        registry: SessionRegistry,
        accounts: TurnAccounts,
        limits: Limits,
        steps_at_once: int,
    ) -> None:
        self._registry = registry
        self._accounts = accounts
        self._slots = SessionSlots(limits.max_sessions, limits.max_waiting)
        self._workers = StepWorkers(steps_at_once)
        self._strangers_lines = LinePace(_MOST_LINES, _WINDOW_S)
        self._session_lines = LinePaces(_MOST_LINES, _WINDOW_S)

    def serve(
        self, frames: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[pb.ServerFrame]:
        """Answer the frames of one stream, which come as bytes."""
        session: ServerSession | None = None
        try:
            # nothing of the stream is read before its token is known
            token = _token_of(context)
            session = self._registry.admit(token)
            session.await_open(context)
            # again: had the round ended in between, nobody would end the stream
            self._registry.admit(token)
            yield from self._replies(session, frames, context)
        except SplitError as refusal:
            # or a connection that broke within the metadata would look like an intruder
            if context.is_active():
                peer = context.peer()
                self._log(WARNING, "refused", session, peer=peer, why=refusal)
            _abort(context, refusal)
        except grpc.RpcError:
            pass  # the connection broke; the session may come back on another
        finally:
            if session is not None and session.lost(context):
                self._log(INFO, "disconnected", session, peer=context.peer())

    def _log(
        self, level: int, event: str, session: ServerSession | None, **details: object
    ) -> None:
        """Log an event that a peer can bring about as often as it likes."""
        pace = self._strangers_lines
        if session is not None:
            pace = self._session_lines.of(session, event)
        left_out = pace.next_line()
        if left_out is None:
            return
        if left_out:
            log_session(level, event, session, left_out=left_out)
        log_session(level, event, session, **details)

    def _replies(
        self,
        session: ServerSession,
        frames: Iterator[bytes],
        context: grpc.ServicerContext,
    ) -> Iterator[pb.ServerFrame]:
        first_bytes = next(frames, None)
        if first_bytes is None:
            return
        first = _parse_open(first_bytes)
        # who is not the session's process gets no place
        session.check_open(first)
        place = self._slots.take(session.id)
        try:
            told = None
            if place.number:
                told = _told_to_wait(session, place, context)
                yield told
                _await_slot(session, place, context)
            yield self._opened(session, first, context, told)
            yield from self._answers(session, frames, context)
        finally:
            self._slots.leave(place)

    def _opened(
        self,
        session: ServerSession,
        first: pb.DeviceFrame,
        context: grpc.ServicerContext,
        told: pb.ServerFrame | None,
    ) -> pb.ServerFrame:
        """Open a session, and return the answer to Open."""
        resumed = session.opened
        opened = session.open(first, context, told)
        peer = context.peer()
        if resumed:
            self._log(INFO, "resumed", session, peer=peer)
        else:
            log_session(DEBUG, "opened", session, peer=peer, by=first.open.software)
        return opened

    def _answers(
        self,
        session: ServerSession,
        frames: Iterator[bytes],
        context: grpc.ServicerContext,
    ) -> Iterator[pb.ServerFrame]:
        for frame_bytes in frames:
            answer = partial(self._answer, session, frame_bytes, context)
            reply = self._workers.do(answer, self._slots.taken)
            if reply is None:
                return
            yield reply
            # gRPC comes back here when the reply is on its way
            self._workers.do(partial(self._finish, session), self._slots.taken)
            # beside the next step of another session: it does not take Python's lock
            session.digest()
            if reply.WhichOneof("kind") == "closed":
                return

    def _answer(
        self, session: ServerSession, frame_bytes: bytes, context: grpc.ServicerContext
    ) -> pb.ServerFrame | None:
        """Answer a frame; None ends the stream."""
        frame = self._parsed(session, frame_bytes)
        if frame.WhichOneof("kind") == "leave":
            if session.leave(context):
                log_session(DEBUG, "left", session)
            return None
        return self._answered(session, partial(session.answer, frame, context))

    def _parsed(self, session: ServerSession, frame_bytes: bytes) -> pb.DeviceFrame:
        try:
            return parse_frame(frame_bytes)
        except SplitError as refusal:
            self._end(session, refusal)
            raise

    def _finish(self, session: ServerSession) -> None:
        try:
            session.finish()
        except SplitError as refusal:
            self._end(session, refusal)
            raise

    def deliver(self, session: ServerSession, frame: pb.DeviceFrame) -> pb.ServerFrame:
        """Answer a frame that came in a message; a refusal is an answer, too."""
        if not session.opened:
            log_session(DEBUG, "opened", session)
        try:
            return self._answered(session, partial(session.deliver, frame))
        except SplitError as refusal:
            log_session(WARNING, "refused", session, why=refusal)
            return _refused(refusal)

    def _answered(self, session: ServerSession, answer: Callable[[], _Reply]) -> _Reply:
        """The answer to a frame of a session, which ends with a refusal or Close."""
        try:
            reply = answer()
        except SplitError as refusal:
            self._end(session, refusal)
            raise
        if session.turn.done:
            # before the device knows, so that the round's sums are complete when it
            # replies
            self._accounts.enter(session)
        return reply

    def _end(self, session: ServerSession, refusal: SplitError) -> None:
        # before the traffic is entered: the refusal goes down, too
        count_downlink(session.turn.traffic, _refused(refusal))
        session.end(refusal)
        self._accounts.enter(session)

    def cancel(self, session: ServerSession, why: SplitError) -> None:
        """End a session, and the connection that carries it."""
        if session.running:
            log_session(WARNING, "cancelled", session, why=why)
        # The session ends before its connection: a device that comes back at once must
        # find it over.
        session.end(why)
        session.hang_up()
        # then: a stream that waits for a slot wakes, and says why
        self._slots.forget(session.id)
        # last: it waits for the frame that is being answered, and counts it
        if session.opened:
            self._accounts.enter(session)


def _token_of(context: grpc.ServicerContext) -> str:
    """Return the token that came with a stream; empty if none did."""
    for key, value in context.invocation_metadata():
        if key == TOKEN_KEY:
            return str(value)
    return ""


def _parse_open(frame_bytes: bytes) -> pb.DeviceFrame:
    """Return the first frame of a stream, which is small, whoever sent it."""
    if len(frame_bytes) > _MOST_OPEN_BYTES:
        raise ProtocolError(
            f"the first frame has {len(frame_bytes)} bytes, "
            f"at most {_MOST_OPEN_BYTES} may be"
        )
    return parse_frame(frame_bytes)


def _told_to_wait(
    session: ServerSession, place: Place, context: grpc.ServicerContext
) -> pb.ServerFrame:
    log_session(DEBUG, "waiting", session, peer=context.peer(), place=place.number)
    return pb.ServerFrame(waiting=pb.Waiting(place=place.number))


def _await_slot(
    session: ServerSession, place: Place, context: grpc.ServicerContext
) -> None:
    """Wait until a session may be opened; its thread sleeps meanwhile.

    Raises
    ------
    SplitError
        The session is over, or the connection is.
    """
    with session.waiting(context):
        is_there = context.add_callback(place.wake)
        if is_there and not session.ended:
            place.wait()
    if session.ended:
        raise session.ended
    if not place.has_slot:
        raise SessionCancelled("the connection ended")


def _refused(refusal: SplitError) -> pb.ServerFrame:
    refused = pb.Refused(
        reason=refusal.reason,  # type: ignore[arg-type]
        detail=str(refusal)[:MOST_DETAIL_CHARACTERS],
    )
    return pb.ServerFrame(refused=refused)


def _abort(context: grpc.ServicerContext, refusal: SplitError) -> NoReturn:
    """End a stream by a status with the refusal beside it.

    A frame would wait for the peer to take it, and hold this thread as long. A status
    is out of HTTP/2's flow control.
    """
    if isinstance(refusal, TokenRefused):
        code = grpc.StatusCode.UNAUTHENTICATED
    elif isinstance(refusal, NoRoom):
        # there may be some soon
        code = grpc.StatusCode.UNAVAILABLE
    else:
        code = grpc.StatusCode.FAILED_PRECONDITION
    refused = _refused(refusal).refused.SerializeToString()
    context.set_trailing_metadata(((REFUSED_KEY, refused),))
    context.abort(code, type(refusal).__name__)
    raise AssertionError("abort raises")
