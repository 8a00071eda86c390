"""How long the server waits for a device, within its session and after it."""

from flwr_splitfc.exchange.protocol.split_errors import SessionCancelled
from flwr_splitfc.exchange.server.endpoint.server_session import ServerSession
from flwr_splitfc.exchange.server.turn.limits import Limits


def overdue(
    session: ServerSession, limits: Limits, quiet_s: float
) -> SessionCancelled | None:
    """Return the error that ends a session whose device takes too long, if it does.

    Parameters
    ----------
    session : ServerSession
    limits : Limits
    quiet_s : float
        Seconds since any device in a session was heard of.
    """
    if session.ended_at:
        return None
    if not session.opened_at and session.unopened_s > limits.idle_timeout_s:
        # whatever others do: it holds a thread, and may hold a slot
        limit_s = limits.idle_timeout_s
        what = "silent for"
        waited_s = session.unopened_s
    elif not session.opened_at:
        limit_s = limits.open_timeout_s
        what = "no session opened within"
        waited_s = min(session.silent_s, quiet_s)
    elif session.turn_s > limits.turn_timeout_s:
        limit_s = limits.turn_timeout_s
        what = "its turn took more than"
        waited_s = session.turn_s
    elif session.left_at:
        return None
    elif session.connected:
        limit_s = limits.idle_timeout_s
        what = "silent for"
        waited_s = session.silent_s
    else:
        limit_s = limits.reconnect_timeout_s
        what = "disconnected for"
        waited_s = session.silent_s
    return SessionCancelled(f"{what} {limit_s:g} s") if waited_s > limit_s else None


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
    through_at = session.left_at or session.ended_at
    if through_at and now - through_at > limit_s:
        return f"no reply within {limit_s:g} s after its session"
    return None
