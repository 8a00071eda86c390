"""The split endpoint: the gRPC server that devices' sessions meet the server half at."""

import math
import secrets
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from logging import getLogger
from threading import Lock
from types import TracebackType

import grpc
import torch
from flwr.app import Array

from flwr_splitfc.codec import CutCodec, Link, PayloadError, unpack_labels
from flwr_splitfc.exchange import split_pb2 as pb
from flwr_splitfc.exchange.errors import (
    FeaturesRefused,
    LabelsRefused,
    LimitExceeded,
    ProtocolError,
    SplitError,
    TicketExpired,
    TokenRefused,
)
from flwr_splitfc.exchange.half import HalfTrainer
from flwr_splitfc.exchange.ledger import Ledger, Traffic
from flwr_splitfc.exchange.states import DeviceStates, Kept
from flwr_splitfc.exchange.tensors import pack_tensor
from flwr_splitfc.exchange.ticket import PROTOCOL, Purpose, Ticket

SESSION_METHOD = "/flwr_splitfc.v1.SplitExchange/Session"
KEEPALIVE_MS = 60_000  # how often a quiet device asks whether the connection still stands
GRPC_MESSAGE_BYTES = 5  # compression flag and length before every message
ENDED_TOKENS_KEPT = 10_000  # for a clear answer to a late device; older ones are unknown
LOOPBACK = ("127.0.0.1", "localhost", "::1")

logger = getLogger("flwr")


@dataclass(frozen=True)
class Limits:
    """What one device may ask of the server.

    Parameters
    ----------
    max_sessions : int (default: 256)
        Sessions at once; each holds a thread.
    max_steps : int (default: 1,000,000)
        Steps and predictions of one session.
    max_matrix_bytes : int (default: 512 MiB)
        Size of one feature matrix as float32.
    max_label_entries : int (default: 2^24)
        Entries of one mini-batch's labels.
    max_frame_bytes : int (default: 1 GiB - 1)
        Size of one frame.
    idle_timeout_s : float (default: 600)
        Seconds that a session may stay silent.
    """

    max_sessions: int = 256
    max_steps: int = 1_000_000
    max_matrix_bytes: int = 512 * 2**20
    max_label_entries: int = 2**24
    max_frame_bytes: int = 2**30 - 1
    idle_timeout_s: float = 600.0


@dataclass
class _Session:
    """One admission: issued with a ticket, opened by a device, closed or revoked."""

    purpose: Purpose
    device: str
    server_round: int
    half: HalfTrainer
    context: grpc.ServicerContext | None = None
    closed: bool = False
    steps: int = 0
    full_rows: int = 0
    last_seen: float = 0.0
    traffic: Traffic = field(default_factory=Traffic)


class SplitEndpoint:
    """Serves the exchange for as long as it is entered as a context manager.

    Parameters
    ----------
    half : HalfTrainer
        The server half that all sessions share.
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
        half: HalfTrainer,
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
        self.half = half
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

    def issue(self, purpose: Purpose, device: str, server_round: int, half: HalfTrainer | None = None) -> Ticket:
        """Admit `device` once, to train or to evaluate on `half` (default: the shared one)."""
        token = secrets.token_urlsafe(32)
        with self._lock:
            self._sessions[token] = _Session(purpose, device, server_round, half or self.half)
        return Ticket(self.address, token, purpose, device, server_round, self.seed, self.codec.config())

    def revoke(self, tokens: list[str]) -> None:
        """End the sessions of `tokens`: their tickets expire and open streams are cancelled."""
        with self._lock:
            sessions = [self._sessions.pop(token) for token in tokens if token in self._sessions]
            self._ended_tokens.update(dict.fromkeys(tokens))
            for token in list(self._ended_tokens)[: max(0, len(self._ended_tokens) - ENDED_TOKENS_KEPT)]:
                del self._ended_tokens[token]
            late = [session for session in sessions if session.context is not None and not session.closed]
            for session in sessions:
                session.closed = True
        for session in late:
            logger.warning("Split session of device %s cancelled: its round is over", session.device)
            self._cancel(session)

    def cancel_idle(self) -> None:
        """End the sessions that said nothing for `Limits.idle_timeout_s`."""
        oldest = time.monotonic() - self.limits.idle_timeout_s
        with self._lock:
            idle = [s for s in self._sessions.values() if s.context and not s.closed and s.last_seen < oldest]
            for session in idle:
                session.closed = True
        for session in idle:
            logger.warning("Split session of device %s cancelled: idle", session.device)
            self._cancel(session)

    @staticmethod
    def _cancel(session: _Session) -> None:
        if session.context is not None:
            session.context.cancel()

    # -- one stream ------------------------------------------------------------------------------

    def _serve(self, frames: Iterator[pb.DeviceFrame], context: grpc.ServicerContext) -> Iterator[pb.ServerFrame]:
        session: _Session | None = None
        try:
            for frame in frames:
                if session is None:
                    session = self._admit(frame, context)
                    _count_uplink(session.traffic, frame)
                    reply = self._opened(session)
                else:
                    _count_uplink(session.traffic, frame)
                    reply = self._answer(session, frame)
                _count_downlink(session.traffic, reply)
                if session.closed:
                    self._enter(session)
                yield reply
                if session.closed:
                    return
            logger.warning("Split session of %s broke off", _name(session))
        except SplitError as refusal:
            logger.warning("Split session of %s refused: %s", _name(session), refusal)
            reply = pb.ServerFrame(refused=pb.Refused(reason=refusal.reason, detail=str(refusal)))  # type: ignore[arg-type]
            if session is not None:
                _count_downlink(session.traffic, reply)
                self._enter(session)
            yield reply
        except grpc.RpcError:
            logger.warning("Split session of %s broke off", _name(session))
        finally:
            if session is not None:
                self._enter(session)

    def _enter(self, session: _Session) -> None:
        """Close the session and enter its traffic in the ledger, once."""
        session.closed = True
        traffic, session.traffic = session.traffic, Traffic()
        self.ledger.add(session.server_round, session.purpose, traffic)

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
            session.last_seen = time.monotonic()
        session.traffic.sessions = 1
        return session

    def _opened(self, session: _Session) -> pb.ServerFrame:
        kept = self.states.of(session.device) if session.purpose == "train" else Kept()
        return pb.ServerFrame(opened=pb.Opened(optimizer=kept.optimizer, state=kept.state))

    def _answer(self, session: _Session, frame: pb.DeviceFrame) -> pb.ServerFrame:
        if session.closed:
            raise TicketExpired("the round of this ticket is over")
        session.last_seen = time.monotonic()
        match frame.WhichOneof("kind"):
            case "step":
                self._next(session, frame.step.number)
                return pb.ServerFrame(stepped=self._step(session, frame.step))
            case "predict":
                self._next(session, frame.predict.number)
                return pb.ServerFrame(predicted=self._predict(session, frame.predict))
            case "close":
                return pb.ServerFrame(closed=self._close(session, frame.close))
            case kind:
                raise ProtocolError(f"a {kind} frame cannot come here")

    def _next(self, session: _Session, number: int) -> None:
        if number != session.steps + 1:
            raise ProtocolError(f"step {number} came after step {session.steps}")
        if number > self.limits.max_steps:
            raise LimitExceeded(f"a session may take {self.limits.max_steps} steps")
        session.steps = number

    def _step(self, session: _Session, step: pb.Step) -> pb.Stepped:
        if session.purpose != "train":
            raise ProtocolError("an evaluation's session cannot train")
        started = time.perf_counter()
        features, link = self._features(session, step.features, self.codec.stype)
        rows = len(features)
        if rows > session.full_rows:
            self._check_budget(rows, features[0].numel())
            session.full_rows = rows
        labels = self._labels(step.labels, rows)
        decoded = time.perf_counter()

        loss, gradient = session.half.step(features, labels)

        stepped = time.perf_counter()
        array = self.codec.encode_gradient(gradient.flatten(1), link, full_rows=session.full_rows)
        traffic = session.traffic
        traffic.steps += 1
        traffic.rows += rows
        traffic.loss_sum += loss * rows
        traffic.entries += features.numel()
        traffic.server_codec_seconds += decoded - started + time.perf_counter() - stepped
        return pb.Stepped(
            number=step.number, loss=loss, gradient=pb.Matrix(stype=array.stype, shape=array.shape, data=array.data)
        )

    def _predict(self, session: _Session, predict: pb.Predict) -> pb.Predicted:
        features, _ = self._features(session, predict.features, self.codec.evaluation_stype)
        logits = session.half.predict(features)
        session.traffic.steps += 1
        session.traffic.rows += len(features)
        session.traffic.entries += features.numel()
        return pb.Predicted(number=predict.number, logits=pack_tensor("logits", logits))

    def _close(self, session: _Session, close: pb.Close) -> pb.Closed:
        session.traffic.device_codec_seconds = min(max(close.codec_seconds, 0.0), 1e9)
        if session.purpose == "train":
            self.states.keep(session.device, Kept(tuple(close.optimizer), tuple(close.state)))
        session.closed = True
        return pb.Closed()

    # -- what comes from outside -----------------------------------------------------------------

    def _features(self, session: _Session, matrix: pb.Matrix, stype: str) -> tuple[torch.Tensor, Link]:
        """Features in their own shape, and the link; every way to be wrong is a `FeaturesRefused`."""
        shape = tuple(matrix.shape)
        agreed = session.half.feature_shape
        if matrix.stype != stype:
            raise FeaturesRefused(f"features are coded as {matrix.stype!r}, agreed is {stype!r}")
        if len(shape) < 2 or 0 in shape:
            raise FeaturesRefused(f"features have shape {shape}, wanted (B, ...) with no empty dimension")
        if agreed is not None and shape[1:] != agreed:
            raise FeaturesRefused(f"features of a sample have shape {shape[1:]}, the server half takes {agreed}")
        columns = math.prod(shape[1:])
        max_rows = self.limits.max_matrix_bytes // (4 * columns)
        if shape[0] > max_rows:
            raise FeaturesRefused(f"features of shape {shape} are over {self.limits.max_matrix_bytes} bytes")
        array = Array(dtype="float32", shape=shape, stype=matrix.stype, data=matrix.data)
        try:
            seen, link = self.codec.decode_features(array, expect=(max_rows, columns))
        except PayloadError as error:
            raise FeaturesRefused(str(error)) from error
        return seen.reshape(shape), link

    def _check_budget(self, rows: int, columns: int) -> None:
        try:
            self.codec.check_budget(rows, columns)
        except ValueError as error:
            raise LimitExceeded(str(error)) from error

    def _labels(self, data: bytes, rows: int) -> torch.Tensor:
        try:
            labels = unpack_labels(data, max_entries=self.limits.max_label_entries)
        except PayloadError as error:
            raise LabelsRefused(str(error)) from error
        if labels.ndim < 1 or len(labels) != rows:
            raise LabelsRefused(f"labels have shape {tuple(labels.shape)}, wanted {rows} rows")
        return labels


def _count_uplink(traffic: Traffic, frame: pb.DeviceFrame) -> None:
    kinds = {
        "features": len(frame.step.features.data) + len(frame.predict.features.data),
        "labels": len(frame.step.labels),
        "state": sum(len(tensor.data) for tensor in (*frame.close.optimizer, *frame.close.state)),
    }
    _count(traffic.uplink_bytes, frame.ByteSize(), kinds)


def _count_downlink(traffic: Traffic, frame: pb.ServerFrame) -> None:
    kinds = {
        "gradient": len(frame.stepped.gradient.data),
        "logits": len(frame.predicted.logits.data),
        "state": sum(len(tensor.data) for tensor in (*frame.opened.optimizer, *frame.opened.state)),
    }
    _count(traffic.downlink_bytes, frame.ByteSize(), kinds)


def _count(counts: Counter[str], frame_bytes: int, kinds: dict[str, int]) -> None:
    """Enter a frame by kind; what no kind claims is framing."""
    counts.update(kinds)
    counts["framing"] += frame_bytes + GRPC_MESSAGE_BYTES - sum(kinds.values())


def _name(session: _Session | None) -> str:
    return "an unknown device" if session is None else f"device {session.device}"
