"""Seconds spent in parts of the code."""

import time


class Stopwatch:
    """Adds up the seconds spent in the ``with`` blocks that it is entered for.

    Attributes
    ----------
    seconds : float
        The sum so far.

    Examples
    --------
    >>> coding = Stopwatch()
    >>> with coding:
    ...     _ = sum(range(1000))
    >>> coding.seconds > 0
    True
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self._started = 0.0

    def __enter__(self) -> "Stopwatch":
        self._started = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds += time.perf_counter() - self._started
