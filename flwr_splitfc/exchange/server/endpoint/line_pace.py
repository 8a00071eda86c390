"""How many lines peers may have written into the log."""

import time
from collections import deque
from threading import Lock
from weakref import WeakKeyDictionary


class LinePace:
    """Lets a few lines of a log through in any stretch of time, and counts the others.

    It is safe to use from many threads.

    Parameters
    ----------
    most : int
        Lines in any `window_s` seconds.
    window_s : float
    """

    def __init__(self, most: int, window_s: float) -> None:
        self._window_s = window_s
        self._lock = Lock()
        self._written_at: deque[float] = deque(maxlen=most)
        self._left_out = 0

    def next_line(self) -> int | None:
        """Return how many lines were left out before one; None if it is, too."""
        now = time.monotonic()
        written_at = self._written_at
        with self._lock:
            is_full = len(written_at) == written_at.maxlen
            if is_full and now - written_at[0] < self._window_s:
                self._left_out += 1
                return None
            written_at.append(now)
            left_out = self._left_out
            self._left_out = 0
            return left_out


class LinePaces:
    """A `LinePace` for each event of each session, for as long as the session is there.

    It is safe to use from many threads.

    Parameters
    ----------
    most : int
    window_s : float
        As in `LinePace`.
    """

    def __init__(self, most: int, window_s: float) -> None:
        self._most = most
        self._window_s = window_s
        self._lock = Lock()
        self._paces: WeakKeyDictionary[object, dict[str, LinePace]]
        self._paces = WeakKeyDictionary()

    def of(self, session: object, event: str) -> LinePace:
        """Return that of an event of a session."""
        with self._lock:
            paces = self._paces.setdefault(session, {})
            if event not in paces:
                paces[event] = LinePace(self._most, self._window_s)
            return paces[event]
