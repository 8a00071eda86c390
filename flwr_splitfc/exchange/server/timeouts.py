"""How long the server waits for a device, within its session and after it."""

from flwr_splitfc.exchange.protocol.split_errors import SessionCancelled
from flwr_splitfc.exchange.server.limits import Limits
from flwr_splitfc.exchange.server.server_session import ServerSession


def silence_of(session: ServerSession, limits: Limits) -> SessionCancelled | None:
    """Return the error that ends a session whose device is silent or gone too long."""
    if not session.running:
        return None
    if session.connected:
        state = "silent"
        limit_s = limits.idle_timeout_s
    else:
        state = "disconnected"
        limit_s = limits.reconnect_timeout_s
    if session.silent_s <= limit_s:
        return None
    return SessionCancelled(f"{state} for {limit_s:g} s")


def reason_to_give_up(session: ServerSession, limits: Limits, now: float) -> str | None:
    """Return why a device's reply need not be awaited any longer, if so.

    Parameters
    ----------
    session : ServerSession
    limits : Limits
    now : float
        By `time.monotonic`.
    """
    if isinstance(session.ended, SessionCancelled):
        return str(session.ended)
    limit_s = limits.reply_timeout_s
    if session.ended_at and now - session.ended_at > limit_s:
        return f"no reply within {limit_s:g} s after its session"
    return None
