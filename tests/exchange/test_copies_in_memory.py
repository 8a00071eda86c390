"""What the server keeps of the copies of its half that sessions train."""

import gc
import threading
import time
from contextlib import AbstractContextManager

import grpc
import pytest
import torch
from torch import Tensor, nn

from flwr_splitfc import EndpointConfig, Limits, cut_codec
from flwr_splitfc.exchange import CopiedHalves, HalfTrainer, SplitEndpoint
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.ticket import Ticket
from tests.exchange.raw_device import RawDevice
from tests.exchange.server_halves import ADAM
from tests.exchange.step_frames import label_bytes, step_frame
from tests.halves import same, weights

WIDTH = 13  # of no other test's weights
DEVICES = 3
LEAVE = pb.DeviceFrame(leave=pb.Leave())


def make_endpoint(**limits: float) -> SplitEndpoint:
    layers = [nn.Flatten(), nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 4)]
    model = nn.Sequential(*layers)
    half = HalfTrainer(model, nn.CrossEntropyLoss(), ADAM, device="cpu")
    return SplitEndpoint(
        CopiedHalves(half),
        cut_codec("float32"),
        config=EndpointConfig(limits=Limits(**limits)),
    )


def step(number: int, labels: int = 8) -> pb.DeviceFrame:
    frame = step_frame(torch.rand(8, 4, 4, 4), label_bytes(labels))
    frame.number = number
    return frame


def close(number: int) -> pb.DeviceFrame:
    return pb.DeviceFrame(number=number, close=pb.Close())


def trained(endpoint: SplitEndpoint, device: int) -> tuple[Ticket, RawDevice]:
    """A device in its session, after two steps."""
    ticket = endpoint.issue("train", str(device), 1)
    raw = RawDevice(endpoint, ticket)
    assert [raw.ask(step(n)).WhichOneof("kind") for n in (1, 2)] == ["stepped"] * 2
    return ticket, raw


def until_in_memory(wanted: int) -> None:
    """Wait until there are so many tensors of a first layer's shape: weights, moments.

    A thread may still hold some when its device has the answer.
    """
    while _in_memory() != wanted:
        time.sleep(0.02)


def _in_memory() -> int:
    gc.collect()
    kinds = (Tensor, nn.Parameter)
    tensors = [each for each in gc.get_objects() if type(each) in kinds]
    return sum(tensor.shape == (WIDTH, 64) for tensor in tensors)


def test_of_a_session_that_failed_nothing_is_kept() -> None:
    with make_endpoint() as endpoint:
        for number in range(DEVICES):
            _, device = trained(endpoint, number)
            assert device.ask(step(3, labels=5)).refused.reason == pb.LABELS
            device.drop()
        until_in_memory(1)


def test_of_a_session_that_was_given_up_nothing_is_kept() -> None:
    with make_endpoint(reconnect_timeout_s=0.1) as endpoint:
        for number in range(DEVICES):
            trained(endpoint, number)[1].drop()
        while len(endpoint.sweep()) < DEVICES:
            time.sleep(0.02)
        until_in_memory(1)


def test_after_close_a_copy_is_its_weights_alone() -> None:
    with make_endpoint() as endpoint:
        tickets = []
        for number in range(DEVICES):
            ticket, device = trained(endpoint, number)
            assert device.ask(close(3)).WhichOneof("kind") == "closed"
            device.drop()
            tickets.append(ticket)
        until_in_memory(1 + DEVICES)
        for ticket in tickets:
            endpoint.replied(ticket.token)
        until_in_memory(1 + 1)  # the other is the sum


def test_who_has_left_its_stream_leaves_weights_alone() -> None:
    with make_endpoint() as endpoint:
        ticket, device = trained(endpoint, 0)
        device.send(LEAVE)
        assert list(device._replies) == []
        until_in_memory(1 + 1)
        before = weights(endpoint.halves.half.model)
        assert endpoint.deliver(ticket.token, close(3)).WhichOneof("kind") == "closed"
        endpoint.replied(ticket.token)
        endpoint.end_round([ticket.token])
        assert not same(weights(endpoint.halves.half.model), before)


def test_a_session_that_ends_within_a_step_leaves_the_half_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with make_endpoint() as endpoint:
        half = endpoint.halves.half
        before = weights(half.model)
        ticket = endpoint.issue("train", "0", 1)
        device = RawDevice(endpoint, ticket)
        (session,) = endpoint._registry.sessions()
        end_round = threading.Thread(target=endpoint.end_round, args=[[ticket.token]])
        budget = session.turn.budget
        work = budget.work

        def work_as_the_round_ends(size_bytes: int) -> AbstractContextManager[None]:
            end_round.start()
            while not session.ended:
                time.sleep(0.01)
            return work(size_bytes)

        monkeypatch.setattr(budget, "work", work_as_the_round_ends)
        with pytest.raises(grpc.RpcError, match="CANCELLED"):
            device.ask(step(1))
        end_round.join()
        assert half.steps == 0
        assert same(weights(half.model), before)
        until_in_memory(1 + 1)  # the other is that of before
