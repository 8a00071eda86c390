"""The pace at which a grid looks for replies."""

import time

_FIRST_PAUSE_S = 0.01
_LONGEST_PAUSE_S = 1.0
_PAUSE_GROWTH = 1.2


class PollingPace:
    """The pauses between two looks for replies: they grow while none comes.

    Parameters
    ----------
    timeout_s : float or None
        Seconds from now until the wait is over; None is for ever.
    """

    def __init__(self, timeout_s: float | None) -> None:
        self._deadline: float | None = None
        if timeout_s is not None:
            self._deadline = time.monotonic() + timeout_s
        self._pause_s = _FIRST_PAUSE_S

    @property
    def is_over(self) -> bool:
        """Whether the timeout has passed."""
        if self._deadline is None:
            return False
        return time.monotonic() >= self._deadline

    def pause(self, *, some_came: bool) -> None:
        """Sleep until the next look, given whether the last one found replies."""
        pause_s = self._pause_s
        if self._deadline is not None:
            left_s = self._deadline - time.monotonic()
            pause_s = max(min(pause_s, left_s), 0.0)
        time.sleep(pause_s)
        if some_came:
            self._pause_s = _FIRST_PAUSE_S
        else:
            longer_s = self._pause_s * _PAUSE_GROWTH
            self._pause_s = min(longer_s, _LONGEST_PAUSE_S)
