"""Frames of the exchange inside Flower messages.

A message carries one frame at most, the serialized protobuf message in a
`ConfigRecord`: mods and strategies count a message's `ArrayRecord`, and want one.
"""

from flwr.app import Array, ConfigRecord, Message, RecordDict

from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.split_errors import ProtocolError

FRAME_KEY = "split-frame"
"""Key of the frame's record in a message."""

_BYTES_KEY = "frame"


def has_frame(message: Message) -> bool:
    """Whether `message` carries a frame of the exchange."""
    if not message.has_content():
        return False
    return FRAME_KEY in message.content.config_records


def frame_of(message: Message) -> bytes:
    """Return the frame that `message` carries, serialized.

    Raises
    ------
    ProtocolError
        If it carries none.
    """
    if not has_frame(message):
        raise ProtocolError("the message carries no frame of the exchange")
    data = message.content.config_records[FRAME_KEY].get(_BYTES_KEY)
    if not isinstance(data, bytes):
        raise ProtocolError("the message's record of a frame holds none")
    return data


def server_frame(message: Message) -> pb.ServerFrame:
    """Return the frame that the server sent with `message`.

    A turn's first message has `Kept`, or no frame if earlier turns left nothing: the
    result is then an empty one.
    """
    if not has_frame(message):
        return pb.ServerFrame()
    return pb.ServerFrame.FromString(frame_of(message))


def frame_record(frame: pb.DeviceFrame | pb.ServerFrame) -> ConfigRecord:
    """Return the record that carries a frame."""
    return ConfigRecord({_BYTES_KEY: frame.SerializeToString()})


def frame_reply(message: Message, frame: pb.DeviceFrame) -> Message:
    """Return a reply to `message` that carries nothing but a frame."""
    content = RecordDict({FRAME_KEY: frame_record(frame)})
    return Message(content, reply_to=message)


def raw_array(data: bytes) -> Array:
    """Return bytes as Flower carries them: an array of uint8."""
    return Array(dtype="uint8", shape=(len(data),), stype="raw", data=data)
