"""A device at a server that does not answer as servers do."""

import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest
import torch
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict

from flwr_splitfc import PayloadError, connect, cut_codec, model_codec_mod
from flwr_splitfc.codec.format.label_header import LabelHeader, pack_label_header
from flwr_splitfc.exchange import ProtocolError, SplitEndpoint, SplitError, TicketError
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.claims import (
    FREE_ENTRIES,
    check_claims,
    claimed_entries,
)
from flwr_splitfc.exchange.protocol.frames import frame_field
from flwr_splitfc.exchange.protocol.model_record import pack_model
from flwr_splitfc.exchange.protocol.records import with_fields
from flwr_splitfc.exchange.protocol.rpc import SESSION_METHOD
from flwr_splitfc.exchange.protocol.tensors import to_matrix
from tests.exchange import test_u_shape as u_shape
from tests.exchange.test_reconnect import ADAM, make_endpoint
from tests.halves import DeviceHalf, batches, seeded
from tests.local_grid import ticket_message

OPENED = pb.ServerFrame(opened=pb.Opened()).SerializeToString()
A_FIELD_OF_255_BYTES_THAT_ENDS = b"\x12\xff\x01"


@contextmanager
def serving(*answers: bytes, last_words: str = "", compression=None) -> Iterator[str]:
    """Answer each session with the same frames; yield the address."""

    def serve(frames, context):
        for answer in answers:
            next(frames)
            yield answer
        if last_words:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, last_words)

    service, method = SESSION_METHOD.strip("/").split("/")
    handler = grpc.stream_stream_rpc_method_handler(serve)
    server = grpc.server(ThreadPoolExecutor(2), compression=compression)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {method: handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(grace=None).wait()


@pytest.mark.parametrize("answers", [(), (OPENED,)])
def test_bytes_that_are_no_frame(answers):
    ((x, y),) = batches(1)
    with (
        make_endpoint() as endpoint,
        serving(*answers, A_FIELD_OF_255_BYTES_THAT_ENDS) as address,
    ):
        message = ticket_message(endpoint, address=address)
        with (
            pytest.raises(ProtocolError, match="3 bytes are no frame"),
            connect(message) as session,
        ):
            session.loss(seeded(DeviceHalf)(x), y)


OBEYED = "fine\x1b[2J\nINFO : fine"
REFUSAL = pb.ServerFrame(refused=pb.Refused(detail=OBEYED)).SerializeToString()


@pytest.mark.parametrize(
    ("answers", "last_words"), [((REFUSAL,), ""), ((OPENED, REFUSAL), ""), ((), OBEYED)]
)
def test_what_a_server_tells_is_no_text_that_a_terminal_obeys(answers, last_words):
    ((x, y),) = batches(1)
    with (
        make_endpoint() as endpoint,
        serving(*answers, last_words=last_words) as address,
    ):
        message = ticket_message(endpoint, address=address)
        with (
            pytest.raises(SplitError, match=r"fine\\x1b\[2J\\nINFO") as error,
            connect(message) as session,
        ):
            session.loss(seeded(DeviceHalf)(x), y)
    assert str(error.value).isprintable()


# -- tickets that no server issues


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("device", "a\x1b[2J\nb", r"'device' is 'a\\x1b\[2J\\nb', wanted printable"),
        ("address", "a\n[INFO] fine b:1", "'address' is .*, wanted printable"),
        ("address", "unix:/tmp/socket", "'address': address is 'unix:/tmp/socket'"),
        ("address", "127.0.0.1:0", "'address': address is '127.0.0.1:0'"),
        ("token", "id.secret\n", "'token' is not printable ASCII"),
        ("token", "id.secret\u00e9", "'token' is not printable ASCII"),
        ("authority", "-----BEGIN", "'authority' holds no PEM certificate"),
        ("tls", "pinned", "'authority' holds no PEM certificate"),
    ],
)
def test_a_ticket_that_is_of_no_use_is_refused_at_once(key, value, why):
    with make_endpoint() as endpoint, pytest.raises(TicketError, match=why) as error:
        connect(ticket_message(endpoint, **{key: value}))
    assert "secret" not in str(error.value)


# -- few bytes that stand for many entries

MUCH = FREE_ENTRIES // 4
BOMB = pb.Tensor(name="0.exp_avg", coding=pb.ARRAY_UNIFORM, shape=[MUCH])
EMPTY = pb.Tensor(shape=[0, 2**32 - 1])
ZEROS = pack_label_header(LabelHeader("int64", (MUCH,), "symbols", levels=1))
OF_FIVE = [pb.Part(tuple=5), *[pb.Part(exact=ZEROS)] * 5]


@contextmanager
def little_memory() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**24


def ask(endpoint: SplitEndpoint, method: str, answer: pb.ServerFrame) -> None:
    """Open a session, call its `forward` or `predict`, and answer that."""
    answer.number = 1
    purpose = "train" if method == "forward" else "evaluate"
    with serving(OPENED, answer.SerializeToString()) as address:
        message = ticket_message(endpoint, purpose, address=address)
        with connect(message) as session:
            getattr(session, method)(u_shape.features())


def of_empty_gradients(count: int) -> pb.ServerFrame:
    stepped = pb.Stepped(gradients=[pb.Matrix()] * count)
    return pb.ServerFrame(number=1, stepped=stepped)


def test_a_frame_of_few_bytes_and_many_fields():
    frame = of_empty_gradients(2**17)
    ((x, y),) = batches(1)
    with (
        make_endpoint() as endpoint,
        serving(OPENED, frame.SerializeToString()) as address,
        pytest.raises(ProtocolError, match="answer: a frame has more than 65536 field"),
        connect(ticket_message(endpoint, address=address)) as session,
    ):
        session.loss(seeded(DeviceHalf)(x), y)


def test_a_frame_of_many_fields_in_a_message():
    frame = frame_field(of_empty_gradients(2**17))
    with make_endpoint() as endpoint:
        message = ticket_message(endpoint)
        message.content = with_fields(message.content, frame)
        with pytest.raises(ProtocolError, match="a frame has more than 65536 fields"):
            connect(message)


@pytest.mark.parametrize(
    "compression", [grpc.Compression.Gzip, grpc.Compression.Deflate]
)
def test_compressed_frames_are_not_inflated(compression):
    predicted = pb.Predicted(logits=pb.Tensor(shape=[16, 4], data=bytes(2**24)))
    frame = pb.ServerFrame(number=1, predicted=predicted).SerializeToString()
    ((x, _),) = batches(1)
    with (
        make_endpoint() as endpoint,
        serving(OPENED, frame, compression=compression) as address,
        pytest.raises(ProtocolError, match=r"answer: \d{1,5} bytes are no frame"),
        connect(ticket_message(endpoint, address=address)) as session,
    ):
        session.predict(seeded(DeviceHalf)(x))


@pytest.mark.parametrize(
    ("predicted", "error"),
    [
        (pb.Predicted(logits=BOMB), "'0.exp_avg' is encoded, wanted it plain"),
        (pb.Predicted(logits=EMPTY), "has 4294967295 entries"),
        (pb.Predicted(parts=OF_FIVE), rf"the output of \d+ bytes has {5 * MUCH} e"),
    ],
)
def test_predictions_of_few_bytes(predicted, error):
    with (
        make_endpoint() as endpoint,
        little_memory(),
        pytest.raises(PayloadError, match=error),
    ):
        ask(endpoint, "predict", pb.ServerFrame(predicted=predicted))


def test_what_takes_a_bit_an_entry_may_be_of_any_size():
    check_claims("a model", FREE_ENTRIES + 8 * 1000, 1000)
    with pytest.raises(PayloadError, match="a model of 1000 bytes has"):
        check_claims("a model", FREE_ENTRIES + 8 * 1000 + 1, 1000)


def test_many_dimensions_are_refused_before_they_are_multiplied():
    with pytest.raises(PayloadError, match="has 1000000 dimensions"):
        claimed_entries(10**6 * [2**32 - 1])


def bringing(message: Message, kept: pb.Kept) -> Message:
    message.content = with_fields(
        message.content, frame_field(pb.ServerFrame(kept=kept))
    )
    return message


def test_what_a_device_left_comes_back_plain():
    with make_endpoint() as endpoint, little_memory():
        message = bringing(ticket_message(endpoint), pb.Kept(state=[BOMB]))
        with pytest.raises(PayloadError, match="is encoded, wanted it plain"):
            connect(message).__enter__()


@pytest.mark.parametrize(
    ("tensor", "error"),
    [
        (BOMB, f"the optimizer state has {MUCH} entries, at most"),
        (pb.Tensor(name="0.exp_avg", dtype="no"), "unknown dtype 'no'"),
    ],
)
def test_optimizer_state_that_cannot_be_read_is_left_aside(tensor, error, caplog):
    ((x, y),) = batches(1)
    half = seeded(DeviceHalf)
    with make_endpoint() as endpoint:
        message = bringing(ticket_message(endpoint), pb.Kept(optimizer=[tensor]))
        with (
            little_memory(),
            connect(message, optimizer=ADAM(half.parameters())) as session,
        ):
            session.loss(half(x), y).backward()
    assert "starts afresh" in caplog.text
    assert error in caplog.text


def test_the_arrays_of_models_are_limited_together():
    array = Array("float32", (MUCH,), "array-uniform/1", b"")
    half = pack_model(ArrayRecord({"a": array, "b": array}))
    one = pack_model(ArrayRecord({"a": array}))
    content = RecordDict({"head": half, "middle": half, "tail": one})
    context = Context(1, 1, {}, RecordDict(), {})

    def app(message: Message, context: Context) -> Message:
        raise AssertionError("the app got the models")

    with (
        little_memory(),
        pytest.raises(
            PayloadError, match=rf"model of \d+ bytes has {5 * MUCH} entries"
        ),
    ):
        model_codec_mod(Message(content, 1, "train"), context, app)


# -- with last layers on the device


def test_an_output_of_few_bytes():
    """This codec says in a dozen bytes that nothing of a matrix is worth sending."""
    codec = cut_codec("splitfc-rd", uplink_bits=0.05, downlink_bits=0.05)
    array, _ = codec.encode_features(torch.zeros(16, 2**10))
    output = to_matrix(array)
    output.shape[1] = FREE_ENTRIES // 15
    with (
        u_shape.make_endpoint(output_codec="splitfc-rd") as endpoint,
        little_memory(),
        pytest.raises(PayloadError, match=r"the output of \d+ bytes has \d+ entries"),
    ):
        ask(endpoint, "forward", pb.ServerFrame(output=pb.Output(output=output)))


OF_THREE_ROWS = {
    "forward": pb.ServerFrame(output=pb.Output(output=pb.Matrix(shape=[3, 32]))),
    "predict": pb.ServerFrame(
        predicted=pb.Predicted(logits=pb.Tensor(shape=[3, 32], data=bytes(384)))
    ),
}


@pytest.mark.parametrize("method", OF_THREE_ROWS)
def test_an_output_has_a_row_for_each_of_the_features(method):
    with (
        u_shape.make_endpoint() as endpoint,
        pytest.raises(PayloadError, match=r"has shape \(3, 32\), wanted 16 rows"),
    ):
        ask(endpoint, method, OF_THREE_ROWS[method])
