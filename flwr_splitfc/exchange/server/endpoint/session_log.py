"""The log lines of sessions: ``split session opened: id=... device=... round=...``."""

from logging import getLogger

from flwr_splitfc.exchange.server.endpoint.server_session import ServerSession

_MOST_CHARACTERS = 500  # of what a peer says

logger = getLogger("flwr")


def log_session(
    level: int, event: str, session: ServerSession | None, **details: object
) -> None:
    """Log an event of a session in one line of ``key=value`` pairs.

    Neither tokens nor payloads may be among the details.

    Parameters
    ----------
    level : int
        One of the levels of `logging`.
    event : str
        What happened, in a word.
    session : ServerSession or None
        None where nobody knows whose connection it is.
    **details
        What else there is to say.
    """
    about = {**_identity(session), **details}
    pairs = [f"{key}={_quoted(value)}" for key, value in about.items()]
    logger.log(level, "split session %s: %s", event, " ".join(pairs))


def _identity(session: ServerSession | None) -> dict[str, object]:
    if session is None:
        return {}
    turn = session.turn
    return {
        "id": session.id,
        "device": turn.device,
        "round": turn.server_round,
        "purpose": turn.purpose,
    }


def _quoted(value: object) -> str:
    """Quote what would break a line of pairs, which a peer could forge otherwise."""
    text = str(value)
    if text.isascii() and text.isprintable() and " " not in text:
        return text
    return repr(text[:_MOST_CHARACTERS])
