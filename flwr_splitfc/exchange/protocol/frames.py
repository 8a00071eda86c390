"""Frames of the exchange inside Flower messages.

A message carries one frame at most, the serialized protobuf message: a device's reply
in a `ConfigRecord` of its own, the server's message as a field of the strategy's. Mods
and strategies count a message's `ArrayRecord` and `ConfigRecord`, and want one.
"""

from typing import NamedTuple

from flwr.app import Array, ConfigRecord, Message, RecordDict

from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.frame_bytes import parse_answer
from flwr_splitfc.exchange.protocol.records import FIELD_PREFIX
from flwr_splitfc.exchange.protocol.split_errors import ProtocolError

FRAME_KEY = "split-frame"
"""Key of the record with the frame in a device's reply."""

_BYTES_KEY = "frame"
"""The frame's key in that record, and among our fields in the server's messages."""


class FramePlace(NamedTuple):
    """The keys under which a message has its frame: of the record, and in it."""

    record: str
    field: str


def place_of_frame(message: Message) -> FramePlace | None:
    """Return where a message has its frame; None if it has none."""
    if not message.has_content():
        return None
    configs = message.content.config_records
    if FRAME_KEY in configs:
        return FramePlace(FRAME_KEY, _BYTES_KEY)
    field = FIELD_PREFIX + _BYTES_KEY
    for key, config in configs.items():
        if field in config:
            return FramePlace(key, field)
    return None


def has_frame(message: Message) -> bool:
    """Whether `message` carries a frame of the exchange."""
    return place_of_frame(message) is not None


def frame_of(message: Message) -> bytes:
    """Return the frame that `message` carries, serialized.

    Raises
    ------
    ProtocolError
        If it carries none.
    """
    place = place_of_frame(message)
    if place is None:
        raise ProtocolError("the message carries no frame of the exchange")
    data = message.content.config_records[place.record].get(place.field)
    if not isinstance(data, bytes):
        raise ProtocolError("the message's record of a frame holds none")
    return data


def without_frame(message: Message) -> RecordDict:
    """Return the content of a device's reply but for the frame."""
    content = RecordDict(dict(message.content))
    content.pop(FRAME_KEY, None)
    return content


def server_frame(message: Message) -> pb.ServerFrame:
    """Return the frame that the server sent with `message`.

    A turn's first message has `Kept`, or no frame if earlier turns left nothing: the
    result is then an empty one.

    Raises
    ------
    ProtocolError
        If what it carries is no frame, or holds far more than frames do.
    """
    if not has_frame(message):
        return pb.ServerFrame()
    return parse_answer(frame_of(message))


def frame_field(frame: pb.ServerFrame) -> dict[str, bytes]:
    """Return the field that carries a frame in the server's message (`with_fields`)."""
    return {_BYTES_KEY: frame.SerializeToString()}


def frame_record(frame: pb.DeviceFrame) -> ConfigRecord:
    """Return the record that carries a frame in a device's reply."""
    return ConfigRecord({_BYTES_KEY: frame.SerializeToString()})


def frame_reply(message: Message, frame: pb.DeviceFrame) -> Message:
    """Return a reply to `message` that carries nothing but a frame."""
    content = RecordDict({FRAME_KEY: frame_record(frame)})
    return Message(content, reply_to=message)


def raw_array(data: bytes) -> Array:
    """Return bytes as Flower carries them: an array of uint8."""
    return Array(dtype="uint8", shape=(len(data),), stype="raw", data=data)
