"""The client mod that lets an app see float32 where coded arrays travel."""

from copy import copy

from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable

from flwr_splitfc.codec.model_codec import ModelCodec
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.device_query import QUERY_TYPE
from flwr_splitfc.exchange.protocol.frames import FRAME_KEY
from flwr_splitfc.exchange.protocol.model_record import (
    MODEL_CODEC_KEY,
    codec_in,
    model_for,
    pack_model,
    packed_model,
    unpack_model,
    versions_record,
)
from flwr_splitfc.exchange.protocol.split_errors import ProtocolError

_START_KEY = "model-codec-start."
"""Before the keys of models in the node's context, while a turn is interrupted."""


def model_codec_mod(
    message: Message, context: Context, call_next: ClientAppCallable
) -> Message:
    """Decode the model in a message, and encode its change in the reply.

    It goes with a grid that codes: that of this package's strategies, or
    `flwr_splitfc.ModelCodecGrid` around any other's. The app between gets and returns
    arrays as ever. `SplitClientApp` has it already; in an app of your own it is the
    first of the mods, so that others see whole models::

        app = ClientApp(mods=[model_codec_mod])

    Raises
    ------
    PayloadError, ProtocolError
        If the arrays, or the record beside them, are none of this version's.
    """
    if message.metadata.message_type == QUERY_TYPE:
        return _with_versions(call_next(message, context))
    codec = codec_in(message)
    if codec is None:
        return call_next(message, context)
    brought = _decoded(codec, message)
    content = RecordDict({**message.content, **brought})
    del content[MODEL_CODEC_KEY]
    # the message itself may be the server's, in one process
    decoded = copy(message)
    decoded.content = content
    reply = call_next(decoded, context)
    if reply.has_content():
        start = brought or _taken_out(context)
        if _is_interrupted(reply):
            _put_away(context, start)
        else:
            _encode_changes(codec, reply, start)
    return reply


def _with_versions(answer: Message) -> Message:
    """Add to a device's answer that it has this mod."""
    if answer.has_content():
        answer.content[MODEL_CODEC_KEY] = versions_record()
    return answer


def _is_interrupted(reply: Message) -> bool:
    """Whether the turn goes on with another message, as where frames travel in them."""
    return set(reply.content) == {FRAME_KEY}


def _put_away(context: Context, start: dict[str, ArrayRecord]) -> None:
    """Keep the models in the node's context until the turn's last message."""
    for key, model in start.items():
        context.state[_START_KEY + key] = model


def _taken_out(context: Context) -> dict[str, ArrayRecord]:
    start = {}
    for key in list(context.state.array_records):
        if key.startswith(_START_KEY):
            start[key.removeprefix(_START_KEY)] = context.state.array_records.pop(key)
    return start


def _decoded(codec: ModelCodec, message: Message) -> dict[str, ArrayRecord]:
    """Return the models in a message, by their records' keys."""
    models = {}
    for key, record in message.content.array_records.items():
        packed = packed_model(record)
        if packed is None:
            raise ProtocolError(f"record {key!r} of the message is no coded model")
        coded = unpack_model(pb.Model.FromString(packed))
        models[key] = codec.decode_weights(coded)
    return models


def _encode_changes(
    codec: ModelCodec, reply: Message, start: dict[str, ArrayRecord]
) -> None:
    for key, trained in reply.content.array_records.items():
        before = model_for(key, start)
        reply.content[key] = pack_model(codec.encode_changes(trained, before))
