"""A device at a server that does not answer as servers do."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest

from flwr_splitfc import connect
from flwr_splitfc.exchange import ProtocolError
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.rpc import SESSION_METHOD
from tests.exchange.test_reconnect import make_endpoint
from tests.halves import DeviceHalf, batches, seeded
from tests.local_grid import ticket_message

OPENED = pb.ServerFrame(opened=pb.Opened()).SerializeToString()
A_FIELD_OF_255_BYTES_THAT_ENDS = b"\x12\xff\x01"


@contextmanager
def serving(*answers: bytes) -> Iterator[str]:
    """Answer each session with the same frames; yield the address."""

    def serve(frames, context):
        for answer in answers:
            next(frames)
            yield answer

    service, method = SESSION_METHOD.strip("/").split("/")
    handler = grpc.stream_stream_rpc_method_handler(serve)
    server = grpc.server(ThreadPoolExecutor(2))
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
            pytest.raises(ProtocolError, match="3 bytes that are no frame"),
            connect(message) as session,
        ):
            session.loss(seeded(DeviceHalf)(x), y)
