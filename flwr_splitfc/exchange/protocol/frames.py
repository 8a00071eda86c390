"""Frames of the exchange inside Flower messages."""

from flwr.app import Array, ArrayRecord, Message, RecordDict

from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.errors import ProtocolError

FRAME_KEY = "split-frame"


def has_frame(message: Message) -> bool:
    """Whether `message` carries a frame of the exchange."""
    return message.has_content() and FRAME_KEY in message.content.array_records


def frame_of(message: Message) -> bytes:
    """The frame that `message` carries."""
    if not has_frame(message):
        raise ProtocolError("the message carries no frame of the exchange")
    return bytes(next(iter(message.content.array_records[FRAME_KEY].values())).data)


def frame_record(frame: pb.DeviceFrame | pb.ServerFrame) -> ArrayRecord:
    """A frame as Flower carries it."""
    return ArrayRecord({"frame": raw_array(frame.SerializeToString())})


def frame_reply(message: Message, frame: pb.DeviceFrame) -> Message:
    """A reply with nothing but a frame."""
    return Message(RecordDict({FRAME_KEY: frame_record(frame)}), reply_to=message)


def raw_array(data: bytes) -> Array:
    """Bytes as Flower carries them: an array of uint8."""
    return Array("uint8", (len(data),), "raw", data)
