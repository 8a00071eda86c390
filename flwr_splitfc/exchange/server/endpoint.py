"""The split endpoint: the gRPC server that devices' sessions meet the server half at."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from logging import DEBUG, INFO, WARNING, getLogger
from types import TracebackType

import grpc

from flwr_splitfc.codec import CutCodec
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.address import (
    is_loopback,
    join_address,
    split_address,
)
from flwr_splitfc.exchange.protocol.errors import (
    LimitExceeded,
    SessionCancelled,
    SplitError,
    TicketExpired,
    TokenRefused,
)
from flwr_splitfc.exchange.protocol.rpc import KEEPALIVE_MS, SESSION_METHOD, TOKEN_KEY
from flwr_splitfc.exchange.protocol.ticket import Purpose, Ticket
from flwr_splitfc.exchange.protocol.tls import Tls
from flwr_splitfc.exchange.server.budget_rules import Cut, LastTurn
from flwr_splitfc.exchange.server.certificate import Certificate, server_credentials
from flwr_splitfc.exchange.server.device_states import DeviceStates
from flwr_splitfc.exchange.server.endpoint_config import EndpointConfig
from flwr_splitfc.exchange.server.halves import Halves
from flwr_splitfc.exchange.server.ledger import Ledger
from flwr_splitfc.exchange.server.server_session import Admission, Connection
from flwr_splitfc.exchange.server.turn import Turn, count_downlink

_HANDSHAKE_TIMEOUT_MS = 10_000  # for a connection that does not speak
# beyond the sessions: for connections that are being refused or replaced
_SPARE_STREAMS = 32
_LOGGED_CHARACTERS = 500  # of what a peer says
# sessions whose end is remembered, for a clear answer to a late device
_OVER_KEPT = 10_000

logger = getLogger("flwr")


class SplitEndpoint:
    """Serves the exchange for as long as it is entered as a context manager.

    Parameters
    ----------
    halves : Halves
        The server half, shared by all sessions or copied for each.
    codec : CutCodec
        What is done at the cut; devices learn it from their tickets.
    output_codec : CutCodec, optional
        Where devices have the last layers: what is done with the server half's output
        on its way down and with its gradient on the way up.
    ledger : Ledger, optional
        Where the traffic is entered.
    states : DeviceStates, optional
        What devices keep between turns.
    seed : int (default: 0)
        The run's seed.
    config : EndpointConfig, optional
    """

    def __init__(
        self,
        halves: Halves,
        codec: CutCodec,
        *,
        output_codec: CutCodec | None = None,
        ledger: Ledger | None = None,
        states: DeviceStates | None = None,
        seed: int = 0,
        config: EndpointConfig | None = None,
    ) -> None:
        self.halves = halves
        self.codec = codec
        self.output_codec = output_codec
        self.ledger = ledger or Ledger()
        self.states = states or DeviceStates("per-device")
        self.seed = seed
        self.config = config or EndpointConfig()
        self.limits = self.config.limits
        self._port = self.config.port
        self._certificate = self.config.certificate
        self._lock = threading.Lock()
        self._sessions: dict[str, Admission] = {}
        self._over: dict[str, SplitError] = {}
        self._last_turns: dict[str, dict[Cut, LastTurn]] = {}
        self._server: grpc.Server | None = None

    # -- life --------------------------------------------------------------------------
    # ----------

    def __enter__(self) -> "SplitEndpoint":
        if self.config.transport == "messages":
            logger.info(
                "Frames travel in Flower's messages: one message a mini-batch, and no split endpoint"
            )
            return self
        streams = self.limits.max_sessions + _SPARE_STREAMS
        sizes = [
            (f"grpc.max_{way}_message_length", self.limits.max_frame_bytes)
            for way in ("send", "receive")
        ]
        server = grpc.server(
            ThreadPoolExecutor(streams, thread_name_prefix="split-session"),
            options=[
                *sizes,
                ("grpc.so_reuseport", 0),
                ("grpc.keepalive_time_ms", KEEPALIVE_MS),
                ("grpc.keepalive_permit_without_calls", 0),
                (
                    "grpc.http2.min_recv_ping_interval_without_data_ms",
                    KEEPALIVE_MS // 2,
                ),
                ("grpc.server_handshake_timeout_ms", _HANDSHAKE_TIMEOUT_MS),
            ],
            maximum_concurrent_rpcs=streams,
        )
        handler = grpc.stream_stream_rpc_method_handler(
            self._serve, pb.DeviceFrame.FromString, pb.ServerFrame.SerializeToString
        )
        service, method = SESSION_METHOD.strip("/").split("/")
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {method: handler}),)
        )
        self._port = self._listen(server)
        server.start()
        self._server = server
        tls = {
            "off": "in plaintext",
            "pinned": "with TLS",
            "verified": "with TLS by its own certificate",
        }[self._tls]
        logger.info(
            "Split endpoint listens on %s %s",
            join_address(self.config.host, self._port),
            tls,
        )
        if self.address != join_address(self.config.host, self._port):
            logger.info("Devices are told to connect to %s", self.address)
        if self._tls == "off" and not is_loopback(self.config.host):
            logger.warning(
                "Features, gradients and tokens cross the network in plaintext, as tls=False asks for"
            )
        return self

    def _listen(self, server: grpc.Server) -> int:
        wanted = join_address(self.config.host, self.config.port)
        try:
            if not self.config.encrypted:
                return int(server.add_insecure_port(wanted))
            self._certificate = self._certificate or Certificate.for_run()
            return int(
                server.add_secure_port(wanted, server_credentials(self._certificate))
            )
        except RuntimeError as error:
            raise OSError(
                f"the split endpoint cannot listen on {wanted}: is the port taken, the host here?"
            ) from error

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.revoke(list(self._sessions))
        if self._server is not None:
            self._server.stop(grace=1.0).wait()
            self._server = None

    @property
    def address(self) -> str:
        """``host:port``, as devices are told; none where frames travel in messages."""
        if self.config.transport == "messages":
            return ""
        if not self.config.address:
            return join_address(self.config.host, self._port)
        host, port = split_address(self.config.address)
        return join_address(host, port or self._port)

    @property
    def _tls(self) -> Tls:
        if not self.config.encrypted:
            return "off"
        return "verified" if self.config.certificate else "pinned"

    # -- tickets
    # ---------------------------------------------------------------------------------

    def issue(
        self,
        purpose: Purpose,
        device: str,
        server_round: int,
        *,
        codec: CutCodec | None = None,
        output_codec: CutCodec | None = None,
    ) -> Ticket:
        """Admit `device` once, to train or to evaluate; with codecs of its own, if given."""
        codec, output_codec = codec or self.codec, output_codec or self.output_codec
        session = Admission(
            Turn(
                purpose,
                device,
                server_round,
                self.halves,
                codec,
                self.states,
                self.limits,
                output_codec=output_codec,
                seed=self.seed,
            )
        )
        with self._lock:
            self._sessions[session.id] = session
        return Ticket(
            self.address,
            session.token,
            purpose,
            device,
            server_round,
            self.seed,
            codec.config(),
            output_codec.config() if output_codec else {},
            tls=self._tls,
            authority=self._certificate.authority.decode() if self._certificate else "",
            reconnect_timeout_s=self.limits.reconnect_timeout_s,
        )

    def last_turn(self, device: str, cut: Cut) -> LastTurn | None:
        """The last turn of training that `device` finished, as one of its cuts saw it."""
        return self._last_turns.get(device, {}).get(cut)

    def replied(self, token: str) -> None:
        """The device of this session has sent its Flower reply: what it trained counts."""
        session = self._sessions.get(_id(token))
        if session is not None:
            session.settle()

    def end_round(self, tokens: list[str]) -> None:
        """No more replies are awaited: revoke the round's tickets and settle its server halves."""
        self.revoke(tokens)
        self.halves.end_round()

    def revoke(self, tokens: list[str]) -> None:
        """End the sessions of `tokens` (or their ids): tickets expire and open streams are cancelled."""
        with self._lock:
            sessions = [
                self._sessions.pop(key)
                for key in map(_id, tokens)
                if key in self._sessions
            ]
            for session in sessions:
                over = (
                    SessionCancelled("its round is over")
                    if session.running
                    else _EXPIRED
                )
                self._over[session.id] = session.ended or over
            for key in list(self._over)[: max(0, len(self._over) - _OVER_KEPT)]:
                del self._over[key]
        for session in sessions:
            self._cancel(session, self._over[session.id])

    def sweep(self) -> dict[str, str]:
        """End the sessions whose devices are silent or gone for too long.

        Returns
        -------
        dict of str to str
            By token, why a device's reply need not be awaited any longer.
        """
        now, given_up = time.monotonic(), {}
        with self._lock:
            sessions = list(self._sessions.values())
        for session in sessions:
            # Flower watches over devices and messages
            if session.running and self.config.transport == "stream":
                what, limit_s = ("silent", self.limits.idle_timeout_s)
                if not session.connected:
                    what, limit_s = ("disconnected", self.limits.reconnect_timeout_s)
                if session.silent_s() > limit_s:
                    self._cancel(session, SessionCancelled(f"{what} for {limit_s:g} s"))
            if isinstance(session.ended, SessionCancelled):
                given_up[session.token] = str(session.ended)
            elif (
                session.ended_at
                and now - session.ended_at > self.limits.reply_timeout_s
            ):
                given_up[session.token] = (
                    f"no reply within {self.limits.reply_timeout_s:g} s after its session"
                )
        return given_up

    def _cancel(self, session: Admission, why: SplitError) -> None:
        if session.running:
            self._log(WARNING, "cancelled", session, why=why)
        session.end(why)
        session.hang_up()
        if session.opened:
            self._enter(session)

    # -- frames in messages
    # ----------------------------------------------------------------------

    def deliver(self, token: str, frame: pb.DeviceFrame) -> pb.ServerFrame:
        """The answer to a frame that came in a message; a refusal is one, too."""
        session = self._sessions[_id(token)]
        try:
            if frame.WhichOneof("kind") == "open":
                self._log(DEBUG, "opened", session)
                return session.open(frame, _IN_MESSAGES)
            reply = self._answer(session, frame, _IN_MESSAGES)
            # there is no other connection that the session could be on
            assert reply is not None
            return reply
        except SplitError as refusal:
            self._log(WARNING, "refused", session, why=refusal)
            return _refused(refusal)

    # -- one stream
    # ------------------------------------------------------------------------------

    def _serve(
        self, frames: Iterator[pb.DeviceFrame], context: grpc.ServicerContext
    ) -> Iterator[pb.ServerFrame]:
        session: Admission | None = None
        try:
            session = self._admitted(context)
            session.await_open(context)
            yield from self._replies(session, frames, context)
        except SplitError as refusal:
            # or a connection that broke within the metadata would look like an intruder
            if context.is_active():
                self._log(WARNING, "refused", session, peer=context.peer(), why=refusal)
            yield _refused(refusal)
        except grpc.RpcError:
            pass  # the connection broke; the session may come back on another
        finally:
            if session is not None and session.lost(context):
                self._log(INFO, "disconnected", session, peer=context.peer())

    def _admitted(self, context: grpc.ServicerContext) -> Admission:
        """The session whose token came with the stream; nothing of the stream is read before."""
        token = next(
            (
                str(value)
                for key, value in context.invocation_metadata()
                if key == TOKEN_KEY
            ),
            "",
        )
        with self._lock:
            session, over = self._sessions.get(_id(token)), self._over.get(_id(token))
            others = sum(
                other.connected
                for other in self._sessions.values()
                if other is not session
            )
        if session is None:
            raise over or TokenRefused(
                "unknown token" if token else "no token came with the stream"
            )
        session.check(token)
        if others >= self.limits.max_sessions:
            raise LimitExceeded(f"{others} sessions are open, and no more may be")
        return session

    def _replies(
        self,
        session: Admission,
        frames: Iterator[pb.DeviceFrame],
        context: grpc.ServicerContext,
    ) -> Iterator[pb.ServerFrame]:
        first = next(frames, None)
        if first is None:
            return
        event = "resumed" if session.opened else "opened"
        yield session.open(first, context)
        self._log(
            INFO if event == "resumed" else DEBUG,
            event,
            session,
            peer=context.peer(),
            by=first.open.software,
        )
        for frame in frames:
            reply = self._answer(session, frame, context)
            if reply is None:
                return
            yield reply
            if reply.WhichOneof("kind") == "closed":
                return

    def _answer(
        self, session: Admission, frame: pb.DeviceFrame, connection: Connection
    ) -> pb.ServerFrame | None:
        try:
            reply = session.answer(frame, connection)
        except SplitError as refusal:
            count_downlink(session.turn.traffic, _refused(refusal))
            session.end(refusal)
            self._enter(session)
            raise
        if session.turn.done:
            # before the device knows, so that the round's sums are complete when it
            # replies
            self._enter(session)
        return reply

    def _enter(self, session: Admission) -> None:
        """Enter in the ledger what the session moved since the last time."""
        turn, traffic = session.turn, session.take_traffic()
        self.ledger.add(turn.server_round, turn.purpose, traffic, turn.device)
        if turn.done and traffic.sessions:
            if turn.purpose == "train":
                self._last_turns[turn.device] = {
                    "features": LastTurn.of(turn.codec, traffic)
                }
                if turn.output_codec is not None:
                    self._last_turns[turn.device]["output"] = LastTurn.of(
                        turn.output_codec, traffic
                    )
            seconds = f"{session.ended_at - session.opened_at:.3f}"
            up, down = traffic.uplink_bytes.total(), traffic.downlink_bytes.total()
            self._log(
                DEBUG,
                "closed",
                session,
                steps=traffic.steps,
                seconds=seconds,
                up_bytes=up,
                down_bytes=down,
            )

    @staticmethod
    def _log(level: int, event: str, session: Admission | None, **more: object) -> None:
        """One line of ``key=value`` pairs; neither tokens nor payloads are among them."""
        about: dict[str, object] = {}
        if session is not None:
            turn = session.turn
            about = {
                "id": session.id,
                "device": turn.device,
                "round": turn.server_round,
                "purpose": turn.purpose,
            }
        pairs = " ".join(
            f"{key}={_quoted(value)}" for key, value in {**about, **more}.items()
        )
        logger.log(level, "split session %s: %s", event, pairs)


class _Messages:
    """The connection of sessions whose frames travel in messages: it does not break and cannot be cancelled."""

    def cancel(self) -> None:
        return


_IN_MESSAGES = _Messages()
_EXPIRED = TicketExpired("the round of this ticket is over")


def _id(token: str) -> str:
    return token.partition(".")[0]


def _refused(refusal: SplitError) -> pb.ServerFrame:
    return pb.ServerFrame(
        refused=pb.Refused(reason=refusal.reason, detail=str(refusal))
    )  # type: ignore[arg-type]


def _quoted(value: object) -> str:
    text = str(value)
    return (
        repr(text[:_LOGGED_CHARACTERS])
        if not text.isascii() or not text.isprintable() or " " in text
        else text
    )
