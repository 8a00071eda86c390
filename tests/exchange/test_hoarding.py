"""A device makes the server hold no more than its turn needs."""

import grpc
import pytest
import torch
from flwr.app import Message

from flwr_splitfc import EndpointConfig, Limits, cut_codec
from flwr_splitfc.exchange import DeviceStates, SplitEndpoint
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.rpc import SESSION_METHOD, TOKEN_KEY
from flwr_splitfc.exchange.protocol.tensors import pack_tensor
from flwr_splitfc.exchange.protocol.ticket import PROTOCOLS, Ticket
from tests.exchange.raw_device import NONCE, RawDevice, open_frame, with_refusal
from tests.exchange.server_halves import shared_half
from tests.exchange.step_frames import label_bytes, step_frame
from tests.local_grid import ticket_message

EMPTY = pb.Tensor()


def make_endpoint(states: DeviceStates | None = None, **limits) -> SplitEndpoint:
    return SplitEndpoint(
        shared_half(),
        cut_codec("float32"),
        states=states,
        config=EndpointConfig(limits=Limits(**limits)),
    )


def ticket_of(message: Message) -> Ticket:
    return Ticket.from_message(message)


def close_frame(number: int = 1, **kept) -> pb.DeviceFrame:
    return pb.DeviceFrame(number=number, close=pb.Close(**kept))


def zeros(name: str, entries: int) -> pb.Tensor:
    return pack_tensor(name, torch.zeros(entries))


@pytest.mark.parametrize(
    "frame",
    [
        close_frame(state=[EMPTY] * 200_000),
        close_frame(optimizer=[EMPTY] * 200_000),
        close_frame(state=[pb.Tensor(name="n" * 3_000_000)]),
        close_frame(state=[pb.Tensor(name="n" * 300, dtype="uint8", shape=[0])]),
        close_frame(state=[pb.Tensor(dtype="d" * 3_000_000)]),
        close_frame(state=[pb.Tensor(shape=[1] * 3_000_000)]),
        close_frame(state=[zeros("a", 1_000_000), zeros("b", 1_000_000)]),
        close_frame(levels=[0] * 3_000_000),
        close_frame(no_levels=[128]),
    ],
    ids=[
        "state",
        "optimizer",
        "name",
        "longer-name",
        "dtype",
        "shape",
        "bytes",
        "levels",
        "level",
    ],
)
def test_a_close_that_leaves_too_much_is_refused_and_nothing_is_kept(frame):
    states = DeviceStates("per-device")
    with make_endpoint(states, max_state_bytes=5_000_000) as endpoint:
        ticket = ticket_of(ticket_message(endpoint))
        device = RawDevice(endpoint, ticket)
        assert device.ask(frame).refused.reason in (pb.LIMIT, pb.PROTOCOL)
        device.drop()
        endpoint.replied(ticket.token)
    assert not states.of("0").state
    assert not states.of("0").optimizer


def test_optimizer_state_is_bounded_by_the_parameters_it_is_of():
    """A half of 100 numbers; Adam keeps two numbers for each, and a count."""
    states = DeviceStates("per-device", half=[(10, 9), (10,)])
    adam = [zeros("0.exp_avg", 90), zeros("0.exp_avg_sq", 90), zeros("0.step", 1)]
    much = [zeros("0.exp_avg", 2_000_000)]
    with make_endpoint(states) as endpoint:
        for optimizer, wanted in ((adam, "closed"), (much, "refused")):
            ticket = ticket_of(ticket_message(endpoint))
            device = RawDevice(endpoint, ticket)
            answer = device.ask(close_frame(optimizer=optimizer))
            assert answer.WhichOneof("kind") == wanted
            device.drop()
            endpoint.replied(ticket.token)
    assert [tensor.name for tensor in states.of("0").optimizer] == [
        "0.exp_avg",
        "0.exp_avg_sq",
        "0.step",
    ]


def test_a_long_software_is_refused_unread():
    with make_endpoint() as endpoint:
        ticket = ticket_of(ticket_message(endpoint))
        hello = pb.Open(protocol=PROTOCOLS[-1], nonce=NONCE, software="s" * 10_000)
        answer = _first_answer(endpoint, ticket, pb.DeviceFrame(open=hello))
        assert answer.refused.reason == pb.PROTOCOL


def test_shapes_without_end_are_refused():
    with make_endpoint() as endpoint:
        device = RawDevice(endpoint, ticket_of(ticket_message(endpoint)))
        step = step_frame(torch.rand(8, 4, 4, 4), label_bytes(8))
        step.number = 1
        step.step.features.shape.extend([1] * 3_000_000)
        assert device.ask(step).refused.reason == pb.PROTOCOL
        device.drop()


def test_nothing_compressed_is_inflated():
    """A thousand times as large as on the wire."""
    with make_endpoint() as endpoint:
        ticket = ticket_of(ticket_message(endpoint))
        with pytest.raises(grpc.RpcError) as raised:
            _first_answer(endpoint, ticket, open_frame(), grpc.Compression.Gzip)
        assert raised.value.code() in (
            grpc.StatusCode.UNIMPLEMENTED,
            grpc.StatusCode.INTERNAL,
        )


def _first_answer(
    endpoint: SplitEndpoint,
    ticket: Ticket,
    frame: pb.DeviceFrame,
    compression: grpc.Compression = grpc.Compression.NoCompression,
) -> pb.ServerFrame:
    with grpc.insecure_channel(endpoint.address, compression=compression) as channel:
        call = channel.stream_stream(
            SESSION_METHOD, pb.DeviceFrame.SerializeToString, pb.ServerFrame.FromString
        )
        replies = call(iter([frame]), metadata=((TOKEN_KEY, ticket.token),))
        return next(with_refusal(replies))
