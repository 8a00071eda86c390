"""Reading a frame: what it would take to hold is known before it is parsed.

A parsed message takes far more memory than its bytes where these are many small fields:
two bytes may stand for a tensor. So the bytes are walked first, without an object for
any of them. Protobuf's wire format: a field is a tag, which is its number times eight
and its wire type, and its value; https://protobuf.dev/programming-guides/encoding
"""

from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError

from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.split_errors import ProtocolError

_MOST_FIELDS = 2**16  # a tensor has four; a device half of 16,000 of them has enough
_MOST_FRAMING_BYTES = 2**21  # names, shapes and what else is no payload

_Parsed = TypeVar("_Parsed", pb.DeviceFrame, pb.ServerFrame, pb.Model)

# wire types
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5
_VALUE_BYTES = {_EIGHT_BYTES: 8, _FOUR_BYTES: 4}


def parse_frame(data: bytes) -> pb.DeviceFrame:
    """Return the device's frame that `data` is.

    Raises
    ------
    ProtocolError
        If it is none, or holds far more beside its payloads than frames do.
    """
    return _parse(pb.DeviceFrame, data)


def parse_answer(data: bytes) -> pb.ServerFrame:
    """Return the server's frame that `data` is, as `parse_frame` does."""
    return _parse(pb.ServerFrame, data)


def parse_model(data: bytes) -> pb.Model:
    """Return the model that `data` is, as `parse_frame` does."""
    return _parse(pb.Model, data)


def _parse(kind: type[_Parsed], data: bytes) -> _Parsed:
    # a field takes two bytes at least: fewer bytes cannot hold too many
    if len(data) > 2 * _MOST_FIELDS:
        _Walk(data).over(kind.DESCRIPTOR, 0, len(data))
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise ProtocolError(f"{len(data)} bytes are no frame: {error}") from error


class _Walk:
    """Counts the fields of a message, and the bytes that are no payload."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._fields = 0
        self._framing_bytes = 0

    def over(self, message: Any, begin: int, end: int) -> None:
        """Walk over the bytes of a message, by its descriptor, and those in it."""
        at = begin
        while at < end:
            tag, at = self._varint(at, end)
            field = message.fields_by_number.get(tag >> 3)
            after = self._end_of_value(tag & 7, at, end)
            self._count(field, tag & 7, at, after)
            at = after

    def _count(
        self, field: FieldDescriptor | None, wire_type: int, at: int, after: int
    ) -> None:
        self._fields += 1
        if self._fields > _MOST_FIELDS:
            raise ProtocolError(f"a frame has more than {_MOST_FIELDS} fields")
        if field is not None and wire_type == _LENGTH:
            _, begin = self._varint(at, after)
            if field.message_type is not None:
                self.over(field.message_type, begin, after)
                return
            if field.type == FieldDescriptor.TYPE_BYTES:
                return
        self._framing_bytes += after - at
        if self._framing_bytes > _MOST_FRAMING_BYTES:
            raise ProtocolError(
                f"a frame has more than {_MOST_FRAMING_BYTES} bytes beside its payloads"
            )

    def _end_of_value(self, wire_type: int, at: int, end: int) -> int:
        if wire_type == _VARINT:
            _, after = self._varint(at, end)
        elif wire_type == _LENGTH:
            length, begin = self._varint(at, end)
            after = begin + length
        elif wire_type in _VALUE_BYTES:
            after = at + _VALUE_BYTES[wire_type]
        else:
            raise ProtocolError(f"a frame has the wire type {wire_type}")
        if after > end:
            raise ProtocolError("a frame ends within a field")
        return after

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        """Read a number of seven bits a byte, and return where it ends, too."""
        value = 0
        for place, byte in enumerate(self._data[at : min(at + 10, end)]):
            value |= (byte & 0x7F) << 7 * place
            if byte < 0x80:
                return value, at + place + 1
        raise ProtocolError("a frame ends within a number")
