"""How long, and how often, a broken connection is opened again."""

import random
import time

import grpc

_FIRST_PAUSE_S = 0.01
_LONGEST_PAUSE_S = 2.0
# devices that were cut off together should not come back together
_JITTER = (0.5, 1.5)

# a server that cancelled is asked why, if it is still there
_PATIENCE_AFTER_CANCEL_S = 1.0

_FINAL = (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.INVALID_ARGUMENT)
"""Codes after which another try would end in the same way."""

_FINAL_IN_SESSION = (*_FINAL, grpc.StatusCode.RESOURCE_EXHAUSTED)
"""Those on a connection that stands: there a frame is too large; before, the server is
full, and may have room soon."""


class Retries:
    """The tries to get one answer.

    The time to give up is set by the first failure; a server that says that it is full
    has not failed. Pauses double from failure to
    failure, and start anew with each connection.

    Parameters
    ----------
    patience_s : float
        Seconds from the first failure to giving up.

    Attributes
    ----------
    cancelled : bool
        Whether the server has cancelled the call in one of the tries.
    asks_for_room : bool
        Whether the next try has to open the session before it sends the frame: the last
        one ended for want of room, for the session or for the frame.
    given_up : bool
        Whether the last failure was one too many.
    """

    def __init__(self, patience_s: float) -> None:
        self.cancelled = False
        self.asks_for_room = False
        self.given_up = False
        self._connected = False
        self._patience_s = patience_s
        self._deadline: float | None = None
        self._pause_s = _FIRST_PAUSE_S

    def connected(self) -> None:
        """Take note of a connection: the session is open on it."""
        self._connected = True
        self._pause_s = _FIRST_PAUSE_S

    def failed(self, code: grpc.StatusCode) -> None:
        """Take note of a failure, by its gRPC code."""
        now = time.monotonic()
        if code is grpc.StatusCode.CANCELLED:
            self.cancelled = True
            self._patience_s = min(self._patience_s, _PATIENCE_AFTER_CANCEL_S)
        if self._deadline is None:
            self._deadline = now + self._patience_s
        self.asks_for_room = code is grpc.StatusCode.RESOURCE_EXHAUSTED
        final = _FINAL_IN_SESSION if self._connected else _FINAL
        self.given_up = code in final or now > self._deadline
        self._connected = False

    def waits(self) -> None:
        """Take note that the server lets this device wait for a slot: it is there."""
        self._deadline = None
        self._pause_s = _FIRST_PAUSE_S

    def told_to_come_again(self) -> None:
        """Take note that the server has no room to wait in, either."""
        self._deadline = time.monotonic() + self._patience_s
        self.asks_for_room = True
        self.given_up = False
        self._connected = False

    def pause(self) -> None:
        """Wait before the next try, not beyond the time to give up."""
        assert self._deadline is not None
        pause_s = self._pause_s * random.uniform(*_JITTER)
        left_s = max(self._deadline - time.monotonic(), 0.0)
        time.sleep(min(pause_s, left_s))
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
