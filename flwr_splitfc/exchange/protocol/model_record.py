"""Coded models in Flower's messages: one array holds a model, a record says how.

Flower sends each array of a record with a description and two hashes of its own, which
for the small arrays of a coded model is more than these have.
"""

from collections.abc import Mapping

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from flwr_splitfc.codec.model_arrays import EXACT_STYPE
from flwr_splitfc.codec.model_codec import ModelCodec
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.split_errors import ProtocolError

MODEL_CODEC_KEY = "model-codec"
"""Key of the record: in a message with coded arrays, and in a device's answer to the
query, where it says which versions the device reads."""

MODEL_CODEC_VERSIONS = (1,)

_MODEL_KEY = "model"
_MODEL_STYPE = "model/1"

_VERSION = "version"
_VERSIONS = "versions"
_CHANGE_BITS = "change-bits"


def codec_record(codec: ModelCodec) -> ConfigRecord:
    """Return the record beside arrays that a codec has coded."""
    return ConfigRecord(
        {_VERSION: MODEL_CODEC_VERSIONS[-1], _CHANGE_BITS: codec.changes}
    )


def codec_in(message: Message) -> ModelCodec | None:
    """Return the codec of a message's arrays; None where they are not coded.

    Raises
    ------
    ProtocolError
        If the record is none that this version reads.
    """
    record = message.content.config_records.get(MODEL_CODEC_KEY)
    if record is None:
        return None
    version = record.get(_VERSION)
    if version not in MODEL_CODEC_VERSIONS:
        raise ProtocolError(
            f"model arrays are coded by version {version!r}, "
            f"this package reads {list(MODEL_CODEC_VERSIONS)}: "
            "install the same version of flwr-splitfc on server and devices"
        )
    try:
        return ModelCodec(changes=record.get(_CHANGE_BITS))  # type: ignore[arg-type]
    except ValueError as error:
        raise ProtocolError(f"the record of the model's codec: {error}") from error


def versions_record() -> ConfigRecord:
    """Return what a device that takes coded arrays adds to its answer."""
    return ConfigRecord({_VERSIONS: list(MODEL_CODEC_VERSIONS)})


def takes_coded_arrays(answer: RecordDict) -> bool:
    """Whether the answer of a device says that it reads what this version codes."""
    record = answer.config_records.get(MODEL_CODEC_KEY, ConfigRecord())
    versions = record.get(_VERSIONS)
    return isinstance(versions, list) and MODEL_CODEC_VERSIONS[-1] in versions


def model_for(key: str, sent: Mapping[str, ArrayRecord]) -> ArrayRecord:
    """Return the model that a reply's record under `key` is a change of.

    It is the record of the same key in the message, or the message's only one.
    """
    if len(sent) == 1:
        (only,) = sent.values()
        return only
    return sent.get(key, ArrayRecord())


def pack_model(coded: ArrayRecord) -> ArrayRecord:
    """Put coded arrays into one."""
    model = pb.Model()
    for name, array in coded.items():
        model.arrays.add(
            name=name,
            dtype=array.dtype,
            shape=array.shape,
            data=array.data,
            # exact arrays are most of a small model's
            stype="" if array.stype == EXACT_STYPE else array.stype,
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
    """Return the coded arrays, unchecked: the codec checks them."""
    coded = ArrayRecord()
    for tensor in model.arrays:
        coded[tensor.name] = Array(
            dtype=tensor.dtype,
            shape=tuple(tensor.shape),
            stype=tensor.stype or EXACT_STYPE,
            data=tensor.data,
        )
    return coded
