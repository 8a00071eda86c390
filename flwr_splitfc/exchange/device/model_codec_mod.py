"""The client mod that lets an app see float32 where coded arrays travel."""

from collections.abc import Collection
from copy import copy
from functools import cache
from logging import getLogger
from typing import Any, TypeAlias

from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable

from flwr_splitfc.codec.model_codec import ModelCodec
from flwr_splitfc.exchange.device.identity import answer_device_query
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.claims import check_claims, claimed_entries
from flwr_splitfc.exchange.protocol.device_query import QUERY_TYPE
from flwr_splitfc.exchange.protocol.frame_bytes import parse_model
from flwr_splitfc.exchange.protocol.frames import FRAME_KEY
from flwr_splitfc.exchange.protocol.model_record import (
    MODEL_CODEC_KEY,
    model_for,
    pack_model,
    packed_model,
    unpack_model,
    versions_record,
)
from flwr_splitfc.exchange.protocol.split_errors import ProtocolError
from flwr_splitfc.exchange.protocol.ticket import Ticket, has_ticket

_START_KEY = "model-codec-start."
_CODEC_KEY = "model-codec-bits."
"""Before the keys of models in the node's context, while a turn is interrupted."""

_EVALUATION_HINT = (
    "In evaluation no model comes back. Give a mod that wants one to training alone: "
    "app.train(mods=[...]), or train_mods of SplitClientApp"
)
_MESSAGES_HINT = (
    'With split-transport "messages" a turn is many messages, and mods run for each: '
    "only the first brings the model, and only the last reply takes it back. A mod "
    'that wants one needs the transport "stream"'
)

logger = getLogger("flwr")

_Start: TypeAlias = dict[str, tuple[ArrayRecord, ModelCodec]]
"""The models that a turn starts from, and how their changes are coded."""


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
        If coded arrays are none of this version's.
    ValueError
        If the app returns no `Message`.
    """
    if message.metadata.message_type == QUERY_TYPE:
        return _answer(message, context, call_next)
    start = _decoded(message)
    reply = call_next(_with_models(message, start), context)
    if not isinstance(reply, Message):
        raise ValueError(
            f"the {message.metadata.message_type} function returned {reply!r:.100}, "
            "wanted a Message"
        )
    if reply.has_error():
        return _error_of_mod(message, reply)
    if _is_interrupted(reply):
        _put_away(context, start)
    else:
        _encode_changes(reply, start or _taken_out(context))
    return reply


def _answer(
    message: Message, context: Context, call_next: ClientAppCallable
) -> Message:
    """Return who the device is, and that it has this mod."""
    # a mod between that wants a model or a config in each message
    try:
        answer = call_next(message, context)
    except Exception as error:
        # first: what fails here, too, is no mod's
        answer = answer_device_query(message, context)
        _tell_of_mod(repr(error))
    if answer.has_error():
        answer = answer_device_query(message, context)
    answer.content[MODEL_CODEC_KEY] = versions_record()
    return answer


# once in a process, which may be that of many devices
@cache
def _tell_of_mod(error: str) -> None:
    logger.warning(
        "A mod of this app fails on the query %r with %.300s. The query is answered "
        "without it; a mod sees queries, too, which hold neither model nor config",
        QUERY_TYPE,
        error,
    )


def _error_of_mod(message: Message, reply: Message) -> Message:
    """Return the error of a mod between, which may reply to the app's reply."""
    reason = reply.error.reason
    if message.metadata.message_type.startswith("evaluate"):
        reason = f"{reason} ({_EVALUATION_HINT})"
    elif has_ticket(message) and Ticket.from_message(message).is_for_messages:
        reason = f"{reason} ({_MESSAGES_HINT})"
    return Message(Error(reply.error.code, reason), reply_to=message)


def _with_models(message: Message, start: _Start) -> Message:
    if not start:
        return message
    models = {key: model for key, (model, _) in start.items()}
    # the message itself may be the server's, in one process
    decoded = copy(message)
    decoded.content = RecordDict({**message.content, **models})
    return decoded


def _is_interrupted(reply: Message) -> bool:
    """Whether the turn goes on with another message, as where frames travel in them."""
    return set(reply.content) == {FRAME_KEY}


def _put_away(context: Context, start: _Start) -> None:
    """Keep the models in the node's context until the turn's last message."""
    for key, (model, codec) in start.items():
        context.state[_START_KEY + key] = model
        context.state[_CODEC_KEY + key] = ConfigRecord({"changes": codec.changes})


def _taken_out(context: Context) -> _Start:
    start = {}
    for name in list(context.state.array_records):
        if name.startswith(_START_KEY):
            key = name.removeprefix(_START_KEY)
            model = context.state.array_records.pop(name)
            bits = context.state.config_records.pop(_CODEC_KEY + key)["changes"]
            start[key] = model, _codec(bits)
    return start


def _decoded(message: Message) -> _Start:
    """Return the coded models in a message, by their records' keys."""
    models = _coded_models(message)
    _check_models(models.values())
    start = {}
    for key, model in models.items():
        codec = _codec(model.change_bits)
        start[key] = codec.decode_weights(unpack_model(model)), codec
    return start


def _coded_models(message: Message) -> dict[str, pb.Model]:
    models = {}
    for key, record in message.content.array_records.items():
        packed = packed_model(record)
        if packed is not None:
            models[key] = parse_model(packed)
    return models


def _check_models(models: Collection[pb.Model]) -> None:
    """Refuse models that together claim too many entries."""
    shapes = [array.shape for model in models for array in model.arrays]
    entries = sum(claimed_entries(shape) for shape in shapes)
    sent_bytes = sum(model.ByteSize() for model in models)
    check_claims("the model", entries, sent_bytes)


def _codec(change_bits: Any) -> ModelCodec:
    try:
        return ModelCodec(changes=change_bits)
    except ValueError as error:
        raise ProtocolError(f"the coded model: {error}") from error


def _encode_changes(reply: Message, start: _Start) -> None:
    if not start:
        return
    for key, trained in reply.content.array_records.items():
        before, codec = model_for(key, start, (ArrayRecord(), ModelCodec()))
        reply.content[key] = pack_model(codec.encode_changes(trained, before))
