"""The registry of sessions: which tokens admit to which session, and which are over."""

import hmac
from collections.abc import Callable, Iterable
from hashlib import sha256
from threading import Lock
from typing import NamedTuple

from flwr_splitfc.exchange.protocol.split_errors import (
    SessionCancelled,
    SplitError,
    TicketExpired,
    TokenRefused,
)
from flwr_splitfc.exchange.server.endpoint.server_session import ServerSession, remade

_MOST_OVER = 10_000
"""Sessions whose end is remembered, for a clear answer to a late device."""


class _Over(NamedTuple):
    """A session that is over: whose token admitted to it, and what makes the reason."""

    token_sha256: bytes
    make_why: Callable[[], SplitError]

    def check(self, token: str) -> None:
        """Tell nothing of the session to whoever has not its token."""
        if not hmac.compare_digest(self.token_sha256, _sha256(token)):
            raise TokenRefused("unknown token")


class SessionRegistry:
    """The sessions of the rounds that are not over, by id.

    It is safe to use from many threads.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._sessions: dict[str, ServerSession] = {}
        self._over: dict[str, _Over] = {}

    def add(self, session: ServerSession) -> None:
        """Let a session's token admit to it."""
        with self._lock:
            self._sessions[session.id] = session

    def get(self, token: str) -> ServerSession | None:
        """Return the session of a token that the server itself holds."""
        return self._sessions.get(_session_id(token))

    def sessions(self) -> list[ServerSession]:
        """Return all sessions."""
        with self._lock:
            return list(self._sessions.values())

    def admit(self, token: str) -> ServerSession:
        """Return the session of a token that came from the network.

        Raises
        ------
        SplitError
            If the token is unknown or its session over.
        """
        session_id = _session_id(token)
        with self._lock:
            session = self._sessions.get(session_id)
            over = self._over.get(session_id)
        if session is not None:
            session.check(token)
            return session
        if over is not None:
            over.check(token)
            raise over.make_why()
        unknown = "unknown token" if token else "no token came with the stream"
        raise TokenRefused(unknown)

    def revoke(self, tokens: Iterable[str]) -> list[tuple[ServerSession, SplitError]]:
        """Let tokens admit to nothing any more.

        Returns
        -------
        list of tuple of ServerSession and SplitError
            Their sessions, and what each is over for.
        """
        revoked = []
        with self._lock:
            for token in tokens:
                session = self._sessions.pop(_session_id(token), None)
                if session is not None:
                    # under one lock: a device that comes in between must find its
                    # session, or why it is over
                    why = session.ended or _end_of_round(session)
                    token_sha256 = _sha256(session.token)
                    self._over[session.id] = _Over(token_sha256, remade(why))
                    revoked.append((session, why))
            self._forget_oldest()
        return revoked

    def _forget_oldest(self) -> None:
        surplus = max(0, len(self._over) - _MOST_OVER)
        for session_id in list(self._over)[:surplus]:
            del self._over[session_id]


def _session_id(token: str) -> str:
    return token.partition(".")[0]


def _sha256(token: str) -> bytes:
    return sha256(token.encode()).digest()


def _end_of_round(session: ServerSession) -> SplitError:
    if session.running:
        return SessionCancelled("its round is over")
    return TicketExpired("the round of this ticket is over")
