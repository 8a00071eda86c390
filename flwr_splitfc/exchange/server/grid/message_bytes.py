"""The bytes of Flower's messages, by kind.

Flower sends the content of a message as objects: the `RecordDict`, its records, their
arrays, and pieces of an array's data. An object names those that it consists of by
their SHA-256, and what a message has twice is sent once.

The pieces of data are of the kind "model", and all the rest is "envelope": names,
shapes, dtypes, hashes, configs, metrics. What Flower adds to deliver a message is in
neither: addresses, requests for objects, HTTP.
"""

from collections import Counter
from copy import copy
from typing import Any, NamedTuple, TypeAlias

from flwr.app import ArrayRecord, Message, RecordDict

from flwr_splitfc.exchange.protocol.frames import frame_of, place_of_frame
from flwr_splitfc.exchange.protocol.split_errors import ProtocolError

_BytesByObject: TypeAlias = dict[str, Counter[str]]
"""The bytes of each object by kind, under the hash that Flower knows it by."""


class _Weighed(NamedTuple):
    """A record of arrays, a copy of it, and the objects that the copy consists of."""

    record: ArrayRecord
    copy: ArrayRecord
    objects: _BytesByObject


class MessageMeter:
    """Counts the bytes of messages that are in memory together, such as a round's.

    A record of arrays that messages share is hashed once.
    """

    def __init__(self) -> None:
        self._weighed: dict[int, _Weighed] = {}

    def bytes_of(self, message: Message) -> Counter[str]:
        """Return the bytes of a message's content, under "model" and "envelope".

        The data of a frame is in neither: the exchange counts that by its own kinds.
        """
        content = RecordDict()
        objects: _BytesByObject = {}
        for key, record in message.content.items():
            if isinstance(record, ArrayRecord):
                weighed = self._weigh(record)
                record = weighed.copy
                objects |= weighed.objects
            content[key] = record
            objects[record.object_id] = _envelope(record)
        objects[content.object_id] = _envelope(content)
        frame = place_of_frame(message)
        if frame is not None:
            holder = objects[content[frame.record].object_id]
            holder["envelope"] -= _frame_bytes(message)
        total: Counter[str] = Counter()
        for counted in objects.values():
            total.update(counted)
        return total

    def _weigh(self, record: ArrayRecord) -> _Weighed:
        """Return the objects of a record, of which those that were seen are kept.

        The copy shares the arrays' data. Flower leaves views of the data in an array
        that it has hashed, and cannot pickle it for a simulation any more.
        """
        # the record is kept, too, so that no other one gets its id
        if id(record) not in self._weighed:
            copied = ArrayRecord({name: copy(array) for name, array in record.items()})
            objects = _objects_below(copied)
            self._weighed[id(record)] = _Weighed(record, copied, objects)
        return self._weighed[id(record)]


def _objects_below(record: ArrayRecord) -> _BytesByObject:
    """Return the objects of a record's arrays, and those of their data."""
    objects: _BytesByObject = {}
    for array in record.values():
        objects[array.object_id] = _envelope(array)
        for piece_id, piece in array.children.items():
            data_bytes = _data_bytes(piece)
            objects[piece_id] = Counter(
                model=data_bytes, envelope=len(piece.deflate()) - data_bytes
            )
    return objects


def _frame_bytes(message: Message) -> int:
    try:
        return len(frame_of(message))
    except ProtocolError:
        return 0  # it is refused elsewhere


def _envelope(part: Any) -> Counter[str]:
    return Counter(envelope=len(part.deflate()))


def _data_bytes(piece: Any) -> int:
    return len(piece.data)
