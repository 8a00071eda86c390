"""The transport of a session in Flower's own messages.

It is for devices that cannot reach the ServerApp by any connection of their own.
Flower's messages go from the server to a device and back, and a device's process does
not outlive one. So a turn becomes a chain of messages: each brings the answer to a
device's frame and takes the device's next frame back. In between, the turn lies in the
node's context, as a `StoredTurn`.

A message may come in the middle of a step. The step then starts anew, from the state
before it: its first frames are asked again, and answered from what came.
"""

from flwr.app import Message

from flwr_splitfc.exchange.device.stored_turn import StoredTurn
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.frames import server_frame
from flwr_splitfc.exchange.protocol.split_errors import error_from


class NotAnswered(Exception):
    """The signal that a frame's answer is a message away. It is not for users.

    Attributes
    ----------
    frame : DeviceFrame
        The frame to send.
    """

    def __init__(self, frame: pb.DeviceFrame) -> None:
        super().__init__(f"frame {frame.number} is to be sent")
        self.frame = frame


class Mailbox:
    """The answers of one step, for a turn that travels in messages.

    Parameters
    ----------
    message : Message
        With the server's last frame: `Kept`, or the answer to this device's last one.
    stored : StoredTurn
        With the answer to the step's first frame, if the message brings the second.

    Attributes
    ----------
    closing : DeviceFrame or None
        The device's last frame, which goes with its reply to the strategy.
    uplink_bytes, downlink_bytes : int
        Of all frames so far. The session that is resumed sets what earlier messages
        carried.
    reconnects, connecting_s, round_trips : int, float and int
        Always 0: there is no connection, and each frame has a message of its own.
    """

    reconnects = 0
    connecting_s = 0.0
    round_trips = 0

    def __init__(self, message: Message, stored: StoredTurn) -> None:
        newest = server_frame(message)
        kind = newest.WhichOneof("kind")
        if kind == "refused":
            raise error_from(newest.refused)
        answers = [*stored.answers, newest]
        # the step is not over: the next message needs this answer again
        stored.answers = [newest] if kind == "output" else []
        self._answers = {answer.number: answer for answer in answers}
        # frames are numbered from 1; `Kept` has number 0, and answers none
        self._number = max(answers[0].number - 1, 0)
        self._sent: pb.DeviceFrame | None = None
        self.closing: pb.DeviceFrame | None = None
        self.uplink_bytes = 0
        self.downlink_bytes = 0

    def ask(self, frame: pb.DeviceFrame) -> pb.ServerFrame:
        """Return the answer to a frame, if it came.

        Raises
        ------
        NotAnswered
            If the frame has yet to be sent.
        """
        self.send(frame)
        if frame.WhichOneof("kind") == "close":
            self.closing = frame
            return pb.ServerFrame(number=frame.number, closed=pb.Closed())
        return self.receive(frame.number)

    def send(self, frame: pb.DeviceFrame) -> None:
        """Take a frame to `receive` the answer to: one at a time."""
        self._number += 1
        frame.number = self._number
        self.uplink_bytes += frame.ByteSize()
        self._sent = frame

    def receive(self, number: int) -> pb.ServerFrame:
        """Return the answer to the frame that was sent, as `ask` does."""
        answer = self._answers.get(number)
        if answer is None:
            assert self._sent is not None  # it comes after `send`
            raise NotAnswered(self._sent)
        self.downlink_bytes += answer.ByteSize()
        return answer

    def finish(self) -> None:
        """Do nothing: there is no stream to end."""

    def close(self) -> None:
        """Do nothing: there is no connection."""
