"""A codec that sends some of a batch's rows: labels, loss and gradient are of these alone."""

from functools import partial

import pytest
import torch
from torch import nn

from flwr_splitfc import connect, cut_codec
from flwr_splitfc.codec import CutCodec, pack_labels
from flwr_splitfc.exchange import (
    FeaturesRefused,
    HalfTrainer,
    LabelsRefused,
    SharedHalf,
    SplitEndpoint,
)
from flwr_splitfc.exchange.device.stream import Stream
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.seeds import seeded_generator
from flwr_splitfc.exchange.protocol.tensors import to_matrix
from tests.exchange.server_halves import ADAM, everything, shared_half
from tests.exchange.test_u_shape import tail
from tests.halves import DeviceHalf, ServerHalf, batches, same, seeded
from tests.local_grid import ticket_message

RD = cut_codec("splitfc-rd", uplink_bits=0.48, downlink_bits=4.0)


@pytest.fixture
def endpoint():
    with SplitEndpoint(shared_half(), RD) as endpoint:
        yield endpoint


def u_shaped(output_codec: CutCodec) -> SplitEndpoint:
    """An endpoint whose devices have the last layers, and the loss."""
    model = seeded(partial(nn.Sequential, nn.Flatten(), nn.Linear(64, 32)))
    half = HalfTrainer(model, None, ADAM, device="cpu")
    return SplitEndpoint(SharedHalf(half), RD, output_codec=output_codec)


def test_loss_and_gradient_are_those_of_the_rows_that_were_sent(endpoint):
    x, y = batches(1)[0]
    server = seeded(ServerHalf)
    features = seeded(DeviceHalf)(x).detach().requires_grad_()
    with connect(ticket_message(endpoint)) as session:
        generator = seeded_generator(session.seed, 1)
        session.loss(features, y).backward()
        metrics = session.metrics()
    array, link = RD.encode_features(features, generator=generator)
    decoded, _ = RD.decode_features(array, expect=(16, 64))
    seen = link.sent_rows(decoded).requires_grad_()
    outputs = server(seen.view(link.sent, *features.shape[1:]))
    wanted = nn.functional.cross_entropy(outputs, link.sent_rows(y))
    wanted.backward()
    assert link.sent == 14
    assert metrics["train_loss"] == pytest.approx(wanted.item())
    assert metrics["num-examples"] == 16
    gradient = link.sent_rows(features.grad).flatten(1)
    coarse = 0.2 * float(seen.grad.abs().max())
    torch.testing.assert_close(gradient, seen.grad, rtol=0, atol=coarse)
    others = torch.ones(16, dtype=torch.bool).index_fill(0, link.samples, False)
    assert not features.grad[others].any()


def test_the_ledger_counts_the_whole_batch(endpoint):
    with connect(ticket_message(endpoint)) as session:
        for x, y in batches(3):
            session.loss(seeded(DeviceHalf)(x), y).backward()
    traffic = endpoint.ledger.of(1, "train")
    assert traffic.rows == 48
    assert traffic.entries == 48 * 64
    # of the budget of 0.48; 0.23 or more over ten seeds
    assert 0.15 < traffic.uplink_bits_per_entry <= 0.5
    _, y = batches(1)[0]
    assert traffic.uplink_bytes["labels"] < 3 * len(pack_labels(y))


def test_labels_of_rows_that_were_not_sent_are_refused(endpoint):
    x, y = batches(1)[0]
    before = everything(endpoint)
    array, link = RD.encode_features(seeded(DeviceHalf)(x).detach())
    step = pb.Step(features=to_matrix(array), labels=pack_labels(y))
    stream = Stream(endpoint.issue("train", "0", 1))
    with pytest.raises(LabelsRefused, match="wanted 14 rows"):
        stream.ask(pb.DeviceFrame(step=step))
    assert link.sent == 14
    assert same(everything(endpoint), before)


def test_every_row_goes_both_ways_where_the_loss_is_the_devices():
    x, y = batches(1)[0]
    last = seeded(tail)
    output_codec = cut_codec("splitfc-rd", uplink_bits=4.0, downlink_bits=4.0)
    with (
        u_shaped(output_codec) as endpoint,
        connect(ticket_message(endpoint)) as session,
    ):
        features = seeded(DeviceHalf)(x).detach().requires_grad_()
        output = session.forward(features)
        assert output.shape == (16, 32)
        nn.functional.cross_entropy(last(output), y).backward()
        assert features.grad.flatten(1).any(1).all()


def test_a_sample_is_refused_where_the_loss_is_the_devices():
    x, _ = batches(1)[0]
    array, _ = RD.encode_features(seeded(DeviceHalf)(x).detach())
    frame = pb.DeviceFrame(forward=pb.Forward(features=to_matrix(array)))
    with u_shaped(RD) as endpoint:
        stream = Stream(endpoint.issue("train", "0", 1))
        with pytest.raises(FeaturesRefused, match="14 of 16 rows"):
            stream.ask(frame)
