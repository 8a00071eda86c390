"""Coded models in Flower's messages: one array holds all of a model's.

Flower sends each array of a record with a description and two hashes of its own, which
for the small arrays of a coded model is more than these have.
"""

from collections.abc import Mapping
from typing import TypeVar

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.tensors import pack_array, unpack_array

T = TypeVar("T")

MODEL_CODEC_KEY = "model-codec"
"""Key of a record in a device's answer to the query: which versions it reads."""

MODEL_CODEC_VERSIONS = (1,)

_MODEL_KEY = "model"
_MODEL_STYPE = "model/1"

_VERSIONS = "versions"


def versions_record() -> ConfigRecord:
    """Return what a device that takes coded arrays adds to its answer."""
    return ConfigRecord({_VERSIONS: list(MODEL_CODEC_VERSIONS)})


def takes_coded_arrays(answer: RecordDict) -> bool:
    """Whether the answer of a device says that it reads what this version codes."""
    record = answer.config_records.get(MODEL_CODEC_KEY, ConfigRecord())
    versions = record.get(_VERSIONS)
    return isinstance(versions, list) and MODEL_CODEC_VERSIONS[-1] in versions


def model_for(key: str, sent: Mapping[str, T], default: T) -> T:
    """Return what a message had of the model that a reply has under `key`.

    It is what is under the same key, or all that there is.
    """
    if len(sent) == 1:
        (only,) = sent.values()
        return only
    return sent.get(key, default)


def pack_model(coded: ArrayRecord, change_bits: int = 0) -> ArrayRecord:
    """Put coded arrays into one.

    Parameters
    ----------
    coded : ArrayRecord
    change_bits : int
        From the server: bits per entry of what training changes.
    """
    model = pb.Model(
        arrays=[pack_array(name, array) for name, array in coded.items()],
        change_bits=change_bits,
    )
    data = model.SerializeToString()
    array = Array(dtype="uint8", shape=(len(data),), stype=_MODEL_STYPE, data=data)
    return ArrayRecord({_MODEL_KEY: array})


def packed_model(record: ArrayRecord) -> bytes | None:
    """Return the bytes of a `pb.Model` that a record holds; None for another record."""
    if len(record) != 1:
        return None
    (array,) = record.values()
    return array.data if array.stype == _MODEL_STYPE else None


def unpack_model(model: pb.Model) -> ArrayRecord:
    """Return the coded arrays, unchecked: the codec checks them.

    Raises
    ------
    PayloadError
        If an array's coding is unknown.
    """
    coded = ArrayRecord()
    for frame in model.arrays:
        coded[frame.name] = unpack_array(frame)
    return coded
