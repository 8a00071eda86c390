"""The transport of a session's frames, and the line that a session has over it."""

from typing import Protocol

from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.split_errors import ProtocolError
from flwr_splitfc.exchange.protocol.stopwatch import Stopwatch


class SessionTransport(Protocol):
    """The carrier of a session's frames: a `Stream` or a `Mailbox`.

    Attributes
    ----------
    uplink_bytes, downlink_bytes : int
        Of all frames so far.
    reconnects : int
        How often a connection that broke was opened again.
    round_trips : int
        How many followed one another; 0 if each frame had its own.
    connecting_s : float
        Seconds in `ask` before the first connection stood, and in the server's queue.
    closing : DeviceFrame or None
        The device's last frame, where it goes with the reply to Flower's message.
    """

    uplink_bytes: int
    downlink_bytes: int
    reconnects: int
    round_trips: int
    connecting_s: float
    closing: pb.DeviceFrame | None

    def ask(self, frame: pb.DeviceFrame) -> pb.ServerFrame:
        """Return the answer to a frame; `Close` may become `closing` instead."""

    def send(self, frame: pb.DeviceFrame) -> None:
        """Send a frame whose answer is received later."""

    def receive(self, number: int) -> pb.ServerFrame:
        """Return the answer to the sent frame of that number."""

    def finish(self) -> None:
        """End the stream in good order, after the last answer."""

    def close(self) -> None:
        """Let go of the connection, whatever happened."""


class Line:
    """A session's line to the server: open or not, and how long it made wait.

    Parameters
    ----------
    transport : SessionTransport

    Attributes
    ----------
    waiting : Stopwatch
        Runs while an answer is waited for.
    is_open : bool
        Whether frames can be sent.
    """

    def __init__(self, transport: SessionTransport) -> None:
        self.transport = transport
        self.waiting = Stopwatch()
        self.is_open = False

    def open(self) -> None:
        """Let frames be sent; the first one opens the connection."""
        self.is_open = True

    @property
    def waited_s(self) -> float:
        """Seconds waited for answers, without those that connecting took."""
        return self.waiting.seconds - self.transport.connecting_s

    def ask(self, frame: pb.DeviceFrame, wanted: str) -> pb.ServerFrame:
        """Send a frame and wait for its answer, which has to be of the `wanted` kind.

        Raises
        ------
        RuntimeError
            If the session is not open.
        SplitError
            One of its kinds if the server refuses the frame, or is lost.
        """
        self._check_open()
        with self.waiting:
            reply = self.transport.ask(frame)
        return self._checked(reply, wanted)

    def send(self, frame: pb.DeviceFrame) -> None:
        """Send a frame whose answer is received later, and give it its number."""
        self._check_open()
        self.transport.send(frame)

    def receive(self, number: int, wanted: str) -> pb.ServerFrame:
        """Wait for the answer to the frame of that number, of the `wanted` kind.

        Raises
        ------
        SplitError
            As `ask`.
        """
        self._check_open()
        with self.waiting:
            reply = self.transport.receive(number)
        return self._checked(reply, wanted)

    def _check_open(self) -> None:
        if not self.is_open:
            raise RuntimeError(
                "the session is not open: use `with connect(msg, context) as server:`"
            )

    def _checked(self, reply: pb.ServerFrame, wanted: str) -> pb.ServerFrame:
        kind = reply.WhichOneof("kind")
        if kind != wanted:
            raise ProtocolError(f"the server answered {kind!r}, wanted {wanted!r}")
        return reply

    def hang_up(self) -> None:
        """Let go of the connection, whatever happened."""
        self.transport.close()
        self.is_open = False
