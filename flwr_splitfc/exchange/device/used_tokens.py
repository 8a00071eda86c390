"""The tokens whose sessions this process opened: each admits to one."""

from collections import deque
from threading import Lock

from flwr_splitfc.exchange.protocol.split_errors import TokenRefused

_MOST_TOKENS = 1024

_lock = Lock()
_used: deque[str] = deque(maxlen=_MOST_TOKENS)


def check_unused(token: str) -> None:
    """Refuse a token whose session was opened here, by its last thousand.

    Raises
    ------
    TokenRefused
    """
    with _lock:
        is_used = token in _used
    if is_used:
        raise TokenRefused(
            "a message admits to one session, and its session was opened before: train "
            "and validate within one `with`; server.predict validates"
        )


def note_used(token: str) -> None:
    """Note that a session was opened with the token."""
    with _lock:
        _used.append(token)
