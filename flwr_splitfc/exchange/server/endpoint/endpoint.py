"""The split endpoint: where devices' sessions meet the server half."""

import math
import time
from dataclasses import replace
from logging import getLogger

from flwr_splitfc.codec import CutCodec
from flwr_splitfc.codec.model_arrays import EXACT_BITS
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.ticket import Purpose, Ticket
from flwr_splitfc.exchange.server.accounts.budget_rules import Cut, LastTurn
from flwr_splitfc.exchange.server.accounts.ledger import Ledger
from flwr_splitfc.exchange.server.endpoint.endpoint_config import EndpointConfig
from flwr_splitfc.exchange.server.endpoint.ray_cluster import address_in_cluster
from flwr_splitfc.exchange.server.endpoint.server_session import ServerSession
from flwr_splitfc.exchange.server.endpoint.session_registry import SessionRegistry
from flwr_splitfc.exchange.server.endpoint.session_service import SessionService
from flwr_splitfc.exchange.server.endpoint.stream_server import StreamServer
from flwr_splitfc.exchange.server.endpoint.timeouts import overdue, reason_to_give_up
from flwr_splitfc.exchange.server.endpoint.turn_accounts import TurnAccounts
from flwr_splitfc.exchange.server.half.halves import Halves
from flwr_splitfc.exchange.server.turn.device_states import DeviceStates
from flwr_splitfc.exchange.server.turn.trained_step import StepListener
from flwr_splitfc.exchange.server.turn.turn import Turn
from flwr_splitfc.exchange.server.turn.work_budget import WorkBudget
from flwr_splitfc.model.cutting import beginning_of, end_of

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
    state_bits : int (default: 32)
        Bits per entry of the optimizer state that devices leave.
    pipeline_depth : int (default: 1)
        How many mini-batches a device may have under way at once.
    decoupled : bool (default: False)
        Whether device halves learn from a loss of their own: features go up with both
        budgets, and no gradient comes down.
    send_every : int (default: 1)
        Of so many mini-batches a decoupled device sends one, the first.
    seed : int (default: 0)
        The run's seed.
    config : EndpointConfig, optional
    on_step : StepListener, optional
        Called after each step of training, in a thread that answers devices.
    """

    def __init__(
        self,
        halves: Halves,
        codec: CutCodec,
        *,
        output_codec: CutCodec | None = None,
        ledger: Ledger | None = None,
        states: DeviceStates | None = None,
        state_bits: int = EXACT_BITS,
        pipeline_depth: int = 1,
        decoupled: bool = False,
        send_every: int = 1,
        seed: int = 0,
        config: EndpointConfig | None = None,
        on_step: StepListener | None = None,
    ) -> None:
        self.halves = halves
        self.codec = codec
        self.output_codec = output_codec
        self.ledger = ledger or Ledger()
        self.states = states or DeviceStates("per-device")
        self.state_bits = state_bits
        self.pipeline_depth = pipeline_depth
        self.decoupled = decoupled
        self.send_every = send_every
        self.seed = seed
        self.config = config or EndpointConfig()
        self.on_step = on_step
        self.limits = self.config.limits
        # now: the half is not to be had while it computes a step
        half = halves.half.model
        self._cut, self._output_cut = beginning_of(half), end_of(half)
        self._budget = WorkBudget(self.limits.max_work_bytes)
        self._registry = SessionRegistry()
        self._accounts = TurnAccounts(self.ledger)
        self._service = SessionService(
            self._registry, self._accounts, self.limits, halves.steps_at_once
        )
        self._server = StreamServer(self.config, self._service.serve)

    def __enter__(self) -> "SplitEndpoint":
        if self._streams:
            self._server.start()
        else:
            logger.info(
                "Frames travel in Flower's messages: one message a mini-batch, "
                "and no split endpoint"
            )
        return self

    def __exit__(self, *error: object) -> None:
        # first, or open streams would hold up `stop` for its grace period
        tokens = [session.token for session in self._registry.sessions()]
        self.revoke(tokens)
        self._server.stop()

    def reach_simulation(self) -> None:
        """Listen where each node of a simulation's Ray cluster reaches the endpoint.

        That is where it listens by default, on loopback, until the cluster has more
        than one node. Call it between rounds, once devices have answered: Ray has
        started then.
        """
        if not self._streams or not self.config.is_for_this_machine:
            return
        host = address_in_cluster()
        if host is not None and not self._registry.sessions():
            self._server.stop()
            self.config = replace(self.config, host=host)
            self._server = StreamServer(self.config, self._service.serve)
            self._server.start()

    @property
    def _streams(self) -> bool:
        return self.config.transport == "stream"

    @property
    def address(self) -> str:
        """``host:port``, as devices are told; none where frames travel in messages."""
        return self._server.address if self._streams else ""

    def issue(
        self,
        purpose: Purpose,
        device: str,
        server_round: int,
        *,
        codec: CutCodec | None = None,
        output_codec: CutCodec | None = None,
    ) -> Ticket:
        """Admit a device once.

        Parameters
        ----------
        purpose : "train" or "evaluate"
        device : str
            Its name.
        server_round : int
        codec, output_codec : CutCodec, optional
            The device's own; default the endpoint's.
        """
        codec = codec or self.codec
        if self.decoupled and purpose == "train":
            codec = codec.one_way()
        output_codec = output_codec or self.output_codec
        turn = Turn(
            purpose,
            device,
            server_round,
            self.halves,
            codec,
            self.states,
            self.limits,
            output_codec=output_codec,
            decoupled=self.decoupled,
            seed=self.seed,
            budget=self._budget,
            on_step=self.on_step,
        )
        session = ServerSession(turn, answers=self.pipeline_depth)
        self._registry.add(session)
        certificate = self._server.certificate
        return Ticket(
            address=self.address,
            token=session.token,
            purpose=purpose,
            device=device,
            server_round=server_round,
            seed=self.seed,
            codec=codec.config(),
            output_codec=output_codec.config() if output_codec else {},
            tls=self._server.tls,
            authority=certificate.authority.decode() if certificate else "",
            reconnect_timeout_s=self.limits.reconnect_timeout_s,
            state_bits=self.state_bits,
            keeps_optimizer=self.states.keeps_optimizer,
            pipeline_depth=self.pipeline_depth,
            decoupled=self.decoupled,
            send_every=self.send_every if purpose == "train" else 1,
            cut=self._cut,
            output_cut=self._output_cut,
        )

    def kept(self, token: str) -> pb.Kept:
        """Return what earlier turns left, as of now, for the session of a token.

        Raises
        ------
        KeyError
            If no session has the token.
        """
        return self._session(token).turn.kept()

    def deliver(self, token: str, frame: pb.DeviceFrame) -> pb.ServerFrame:
        """Answer a frame that came in a message; a refusal is an answer, too.

        Raises
        ------
        KeyError
            If no session has the token.
        """
        return self._service.deliver(self._session(token), frame)

    def _session(self, token: str) -> ServerSession:
        session = self._registry.get(token)
        if session is None:
            raise KeyError("no session has this token")
        return session

    def replied(self, token: str) -> None:
        """Note that the device of a session has replied: what its turn left counts."""
        session = self._registry.get(token)
        if session is not None:
            session.settle()

    def failed(self, token: str) -> None:
        """Note that the device of a session has no good reply.

        The optimizer state that it started from may be the cause.
        """
        session = self._registry.get(token)
        if session is not None and session.turn.note_failure():
            logger.warning(
                "Device %s failed after it had started from optimizer state that has "
                "very large entries, or from which another turn failed, too. The state "
                "is dropped, and the next device's optimizer starts afresh",
                session.turn.device,
            )

    def last_turn(self, device: str, cut: Cut) -> LastTurn | None:
        """Return the last turn of training that a device finished, as seen at a cut."""
        return self._accounts.last_turn(device, cut)

    def end_round(self, tokens: list[str]) -> None:
        """End a round: revoke its tickets, and settle its server halves."""
        # first: no session may give its half back into the next round
        self.revoke(tokens)
        self.halves.end_round()

    def revoke(self, tokens: list[str]) -> None:
        """Let tickets expire, and cancel the sessions that they opened.

        Parameters
        ----------
        tokens : list of str
            Theirs, or the ids before the dot.
        """
        for session, why in self._registry.revoke(tokens):
            self._service.cancel(session, why)

    def sweep(self) -> dict[str, str]:
        """End the sessions whose devices take too long.

        Returns
        -------
        dict of str to str
            By token, why a device's reply need not be awaited any longer.
        """
        now = time.monotonic()
        sessions = self._registry.sessions()
        heard_s = [session.silent_s for session in sessions if session.opened]
        quiet_s = min(heard_s, default=math.inf)
        given_up = {}
        for session in sessions:
            # where frames travel in messages, Flower watches over the devices
            late = overdue(session, self.limits, quiet_s) if self._streams else None
            if late is not None:
                self._service.cancel(session, late)
            why = reason_to_give_up(session, self.limits, now)
            if why is not None:
                given_up[session.token] = why
        return given_up
