"""The split endpoint: the gRPC server that devices' sessions meet the server half at."""

import secrets
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from logging import getLogger
from threading import Lock
from types import TracebackType

import grpc

from flwr_splitfc.codec import CutCodec
from flwr_splitfc.exchange import split_pb2 as pb
from flwr_splitfc.exchange.errors import ProtocolError, SplitError, TicketExpired, TokenRefused
from flwr_splitfc.exchange.halves import Halves
from flwr_splitfc.exchange.ledger import Ledger, Traffic
from flwr_splitfc.exchange.limits import Limits
from flwr_splitfc.exchange.states import DeviceStates
from flwr_splitfc.exchange.ticket import PROTOCOL, Purpose, Ticket
from flwr_splitfc.exchange.turn import Turn, count_downlink, count_uplink

SESSION_METHOD = "/flwr_splitfc.v1.SplitExchange/Session"
KEEPALIVE_MS = 60_000  # how often a quiet device asks whether the connection still stands
ENDED_TOKENS_KEPT = 10_000  # for a clear answer to a late device; older ones are unknown
LOOPBACK = ("127.0.0.1", "localhost", "::1")

logger = getLogger("flwr")


@dataclass
class _Session:
    """One admission: issued with a ticket, opened by a device, ended by either side."""

    turn: Turn
    context: grpc.ServicerContext | None = None
    ended: bool = False
    last_seen: float = 0.0

    @property
    def running(self) -> bool:
        return self.context is not None and not self.ended


class SplitEndpoint:
    """Serves the exchange for as long as it is entered as a context manager.

    Parameters
    ----------
    halves : Halves
        The server half, shared by all sessions or copied for each.
    codec : CutCodec
        What is done at the cut; devices learn it from their tickets.
    ledger : Ledger, optional
        Where the traffic is entered.
    states : DeviceStates, optional
        What devices keep between turns.
    seed : int (default: 0)
        The run's seed.
    host : str (default: "127.0.0.1"), port : int (default: 0, any free one)
        Where to listen. Sessions are not encrypted yet, so only loopback addresses are accepted.
    limits : Limits, optional
    """

    def __init__(
        self,
        halves: Halves,
        codec: CutCodec,
        *,
        ledger: Ledger | None = None,
        states: DeviceStates | None = None,
        seed: int = 0,
        host: str = "127.0.0.1",
        port: int = 0,
        limits: Limits | None = None,
    ) -> None:
        if host not in LOOPBACK:
            raise ValueError(f"host is {host!r}; sessions are in plaintext, so it must be one of {LOOPBACK}")
        self.halves = halves
        self.codec = codec
        self.ledger = ledger or Ledger()
        self.states = states or DeviceStates("per-device")
        self.seed = seed
        self.limits = limits or Limits()
        self._host = f"[{host}]" if ":" in host else host
        self._port = port
        self._lock = Lock()
        self._sessions: dict[str, _Session] = {}
        self._ended_tokens: dict[str, None] = {}
        self._server: grpc.Server | None = None

    # -- life ------------------------------------------------------------------------------------

    def __enter__(self) -> "SplitEndpoint":
        sizes = [(f"grpc.max_{way}_message_length", self.limits.max_frame_bytes) for way in ("send", "receive")]
        server = grpc.server(
            ThreadPoolExecutor(self.limits.max_sessions, thread_name_prefix="split-session"),
            options=[
                *sizes,
                ("grpc.so_reuseport", 0),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", KEEPALIVE_MS // 2),
            ],
            maximum_concurrent_rpcs=self.limits.max_sessions,
        )
        handler = grpc.stream_stream_rpc_method_handler(
            self._serve, pb.DeviceFrame.FromString, pb.ServerFrame.SerializeToString
        )
        service, method = SESSION_METHOD.strip("/").split("/")
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
        self._port = server.add_insecure_port(f"{self._host}:{self._port}")
        server.start()
        self._server = server
        logger.info("Split endpoint listens on %s", self.address)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.revoke(list(self._sessions))
        if self._server is not None:
            self._server.stop(grace=1.0).wait()
            self._server = None

    @property
    def address(self) -> str:
        """``host:port``, as devices on this machine reach it."""
        return f"{self._host}:{self._port}"

    # -- tickets ---------------------------------------------------------------------------------

    def issue(self, purpose: Purpose, device: str, server_round: int) -> Ticket:
        """Admit `device` once, to train or to evaluate."""
        token = secrets.token_urlsafe(32)
        with self._lock:
            turn = Turn(purpose, device, server_round, self.halves, self.codec, self.states, self.limits)
            self._sessions[token] = _Session(turn)
        return Ticket(self.address, token, purpose, device, server_round, self.seed, self.codec.config())

    def replied(self, token: str) -> None:
        """The device of this session has sent its Flower reply: what it trained counts."""
        with self._lock:
            session = self._sessions.get(token)
        if session is not None:
            session.turn.settle()

    def end_round(self, tokens: list[str]) -> None:
        """No more replies are awaited: revoke the round's tickets and settle its server halves."""
        self.revoke(tokens)
        self.halves.end_round()

    def revoke(self, tokens: list[str]) -> None:
        """End the sessions of `tokens`: their tickets expire and open streams are cancelled."""
        with self._lock:
            sessions = [self._sessions.pop(token) for token in tokens if token in self._sessions]
            self._ended_tokens.update(dict.fromkeys(tokens))
            for token in list(self._ended_tokens)[: max(0, len(self._ended_tokens) - ENDED_TOKENS_KEPT)]:
                del self._ended_tokens[token]
            late = [session for session in sessions if session.running]
            for session in sessions:
                session.ended = True
        self._cancel(late, "its round is over")

    def cancel_idle(self) -> None:
        """End the sessions that said nothing for `Limits.idle_timeout_s`."""
        oldest = time.monotonic() - self.limits.idle_timeout_s
        with self._lock:
            idle = [s for s in self._sessions.values() if s.running and s.last_seen < oldest]
            for session in idle:
                session.ended = True
        self._cancel(idle, f"silent for {self.limits.idle_timeout_s:g} s")

    @staticmethod
    def _cancel(sessions: list[_Session], why: str) -> None:
        for session in sessions:
            logger.warning("Split session of device %s cancelled: %s", session.turn.device, why)
            if session.context is not None:
                session.context.cancel()

    # -- one stream ------------------------------------------------------------------------------

    def _serve(self, frames: Iterator[pb.DeviceFrame], context: grpc.ServicerContext) -> Iterator[pb.ServerFrame]:
        session: _Session | None = None
        device = "an unknown device"
        try:
            for frame in frames:
                if session is None:
                    session = self._admit(frame, context)
                    device = f"device {session.turn.device}"
                yield self._answer(session, frame)
                if session.turn.done:
                    return
            logger.warning("Split session of %s broke off", device)
        except SplitError as refusal:
            logger.warning("Split session of %s refused: %s", device, refusal)
            reply = pb.ServerFrame(refused=pb.Refused(reason=refusal.reason, detail=str(refusal)))  # type: ignore[arg-type]
            if session is not None:
                count_downlink(session.turn.traffic, reply)
                self._end(session)
            yield reply
        except grpc.RpcError:
            logger.warning("Split session of %s broke off", device)
        finally:
            if session is not None:
                self._end(session)

    def _admit(self, frame: pb.DeviceFrame, context: grpc.ServicerContext) -> _Session:
        if frame.WhichOneof("kind") != "open":
            raise ProtocolError("the first frame must be Open")
        if frame.open.protocol != PROTOCOL:
            raise ProtocolError(f"this server speaks protocol {PROTOCOL}, the device {frame.open.protocol}")
        token = frame.open.token
        with self._lock:
            if token in self._ended_tokens:
                raise TicketExpired("the round of this ticket is over")
            session = self._sessions.get(token)
            if session is None or session.context is not None:
                raise TokenRefused("unknown token" if session is None else "this token was used before")
            session.context = context
        return session

    def _answer(self, session: _Session, frame: pb.DeviceFrame) -> pb.ServerFrame:
        turn, first = session.turn, session.last_seen == 0.0
        session.last_seen = time.monotonic()
        count_uplink(turn.traffic, frame)
        if session.ended:
            raise TicketExpired("the round of this ticket is over")
        reply = turn.open() if first else turn.answer(frame)
        count_downlink(turn.traffic, reply)
        if turn.done:
            self._end(session)  # before the device knows, so that the round's sums are complete when it replies
        return reply

    def _end(self, session: _Session) -> None:
        """End the session and enter its traffic in the ledger, once."""
        session.ended = True
        traffic, session.turn.traffic = session.turn.traffic, Traffic()
        self.ledger.add(session.turn.server_round, session.turn.purpose, traffic)
