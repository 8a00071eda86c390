"""The accounts of turns: what each moved, for the ledger and for the budget rules."""

from logging import DEBUG
from typing import TypeAlias

from flwr_splitfc.exchange.server.accounts.budget_rules import Cut, LastTurn
from flwr_splitfc.exchange.server.accounts.ledger import Ledger
from flwr_splitfc.exchange.server.accounts.traffic import Traffic
from flwr_splitfc.exchange.server.endpoint.server_session import ServerSession
from flwr_splitfc.exchange.server.endpoint.session_log import log_session
from flwr_splitfc.exchange.server.turn.turn import Turn

_LastTurnByCut: TypeAlias = dict[Cut, LastTurn]


class TurnAccounts:
    """Enters in a ledger what sessions moved, and keeps each device's last turn.

    Parameters
    ----------
    ledger : Ledger
    """

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._last_turns: dict[str, _LastTurnByCut] = {}

    def enter(self, session: ServerSession) -> None:
        """Enter what a session moved since the last time."""
        turn = session.turn
        traffic = session.take_traffic()
        self.ledger.add(turn.server_round, turn.purpose, traffic, device=turn.device)
        # the first traffic of a session counts the session, and so comes once
        if turn.done and traffic.sessions:
            if turn.purpose == "train":
                self._last_turns[turn.device] = _last_turn_at_cuts(turn, traffic)
            _log_closed(session, traffic)

    def last_turn(self, device: str, cut: Cut) -> LastTurn | None:
        """Return the last turn of training that a device finished, as seen at a cut."""
        return self._last_turns.get(device, {}).get(cut)


def _last_turn_at_cuts(turn: Turn, traffic: Traffic) -> _LastTurnByCut:
    last_turn: _LastTurnByCut = {}
    last_turn["features"] = LastTurn.of(turn.codec, traffic)
    if turn.output_codec is not None:
        last_turn["output"] = LastTurn.of(turn.output_codec, traffic)
    return last_turn


def _log_closed(session: ServerSession, traffic: Traffic) -> None:
    # not the time in which a reply to Flower's message is under way
    through_at = session.left_at or session.ended_at
    log_session(
        DEBUG,
        "closed",
        session,
        steps=traffic.steps,
        seconds=f"{through_at - session.opened_at:.3f}",
        up_bytes=traffic.uplink_bytes.total(),
        down_bytes=traffic.downlink_bytes.total(),
    )
