"""Mini-batches that go up without a gradient that comes down, and whose answers nobody waits for."""

import pytest
import torch
from torch import nn

from flwr_splitfc import AuxiliaryHead, DecoupledHalf, connect, cut_codec
from flwr_splitfc.exchange import LabelsRefused, SplitEndpoint, TicketError
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.ticket import Ticket
from tests.cutting_proxy import CuttingProxy
from tests.exchange.raw_device import RawDevice
from tests.exchange.server_halves import ADAM, shared_half
from tests.exchange.step_frames import label_bytes, step_frame
from tests.halves import CLASSES, DeviceHalf, ServerHalf, batches, same, seeded, weights
from tests.local_grid import ticket_message

STEPS = 12
CROSS_ENTROPY = nn.CrossEntropyLoss()


def decoupled_half() -> DecoupledHalf:
    return DecoupledHalf(seeded(DeviceHalf), seeded(head))


def head() -> AuxiliaryHead:
    return AuxiliaryHead((4, 4, 4), CLASSES)


def make_endpoint(depth: int = 16, codec: str = "float32", every: int = 1):
    return SplitEndpoint(
        shared_half(),
        cut_codec(codec),
        pipeline_depth=depth,
        decoupled=True,
        send_every=every,
    )


def train(message, steps: int = STEPS) -> tuple[DecoupledHalf, dict]:
    """A turn in a loop of one's own, and its metrics."""
    model = decoupled_half()
    optimizer = ADAM(model.parameters())
    with connect(message, optimizer=optimizer) as server:
        for x, y in batches(steps):
            optimizer.zero_grad()
            features = model(x)
            server.send(features, y)
            CROSS_ENTROPY(model.auxiliary(features), y).backward()
            optimizer.step()
        metrics = server.metrics()
    return model, metrics


def reference(every: int = 1) -> tuple[DecoupledHalf, ServerHalf, float]:
    """The same in one process, and the server half's mean loss."""
    model, server_half = decoupled_half(), seeded(ServerHalf)
    optimizer, server_optimizer = (
        ADAM(model.parameters()),
        ADAM(server_half.parameters()),
    )
    losses = []
    for number, (x, y) in enumerate(batches(STEPS)):
        features = model(x)
        if number % every == 0:
            server_optimizer.zero_grad()
            loss = CROSS_ENTROPY(server_half(features.detach()), y)
            loss.backward()
            server_optimizer.step()
            losses.append(loss.item())
        optimizer.zero_grad()
        CROSS_ENTROPY(model.auxiliary(features), y).backward()
        optimizer.step()
    return model, server_half, sum(losses) / len(losses)


@pytest.mark.parametrize("depth", [1, 3, STEPS, STEPS + 4])
def test_both_halves_train_as_in_one_process(depth):
    device_wanted, server_wanted, loss_wanted = reference()
    with make_endpoint(depth) as endpoint:
        model, metrics = train(ticket_message(endpoint))
        assert same(weights(model), weights(device_wanted))
        assert same(weights(endpoint.halves.half.model), weights(server_wanted))
        traffic = endpoint.ledger.of(1, "train")
    assert metrics["steps"] == traffic.steps == STEPS
    assert metrics["num-examples"] == traffic.rows == STEPS * 16
    assert metrics["train_loss"] == pytest.approx(loss_wanted)
    assert traffic.downlink_bytes["gradient"] == 0
    assert traffic.uplink_bytes["features"] == STEPS * 16 * 64 * 4


@pytest.mark.parametrize(
    ("every", "sent"), [(2, 6), (5, 3), (STEPS, 1), (2 * STEPS, 1)]
)
def test_the_server_half_learns_from_the_first_of_so_many_mini_batches(every, sent):
    device_wanted, server_wanted, loss_wanted = reference(every)
    with make_endpoint(every=every) as endpoint:
        model, metrics = train(ticket_message(endpoint))
        assert same(weights(model), weights(device_wanted))
        assert same(weights(endpoint.halves.half.model), weights(server_wanted))
        traffic = endpoint.ledger.of(1, "train")
    assert metrics["steps"] == traffic.steps == sent
    assert metrics["num-examples"] == STEPS * 16
    assert metrics["train_loss"] == pytest.approx(loss_wanted)
    assert traffic.rows == sent * 16
    assert traffic.uplink_bytes["features"] == sent * 16 * 64 * 4


def test_a_mini_batch_that_stays_here_is_checked_alike():
    x, y = batches(1)[0]
    features = seeded(DeviceHalf)(x)
    with (
        make_endpoint(every=2) as endpoint,
        connect(ticket_message(endpoint)) as server,
    ):
        server.send(features, y)
        with pytest.raises(ValueError, match="a row for each sample"):
            server.send(features[0, 0, 0], y)


def test_what_waits_for_its_answer_goes_up_whatever_is_sent():
    x, y = batches(1)[0]
    features = seeded(DeviceHalf)(x).detach()
    with (
        make_endpoint(every=3) as endpoint,
        connect(ticket_message(endpoint)) as server,
    ):
        server.send(features, y)
        server.send(features, y)
        server.loss(features, y)
        server.send(features, y)
        server.send(features, y)
        assert server.metrics()["steps"] == endpoint.halves.half.steps == 3


@pytest.mark.parametrize("key", ["send-every", "pipeline-depth"])
def test_a_ticket_that_counts_none_is_refused(key):
    with make_endpoint(every=2) as endpoint:
        message = ticket_message(endpoint)
        (config,) = message.content.config_records.values()
        config[f"split.{key}"] = 0
        with pytest.raises(TicketError, match=f"'{key}' is 0, wanted 1 or more"):
            connect(message)


@pytest.mark.parametrize(("depth", "round_trips"), [(1, STEPS), (4, 3), (16, 1)])
def test_round_trips_are_those_of_answers_that_are_waited_for(depth, round_trips):
    with make_endpoint(depth) as endpoint:
        train(ticket_message(endpoint))
        traffic = endpoint.ledger.of(1, "train")
    # and one of Close
    assert traffic.round_trips == round_trips + 1


@pytest.mark.parametrize("every", [1, 2])
def test_cuts_leave_no_trace(every):
    steps = 60 * every
    with make_endpoint(4, every=every) as endpoint:
        undisturbed, _ = train(ticket_message(endpoint), steps)
        server_half = weights(endpoint.halves.half.model)
        digest = endpoint.ledger.digest()
    with (
        make_endpoint(4, every=every) as endpoint,
        CuttingProxy(endpoint.address, 30, most_bytes=30_000) as proxy,
    ):
        message = ticket_message(endpoint, address=proxy.address)
        disturbed, metrics = train(message, steps)
        assert metrics["reconnects"] > 0
        assert endpoint.halves.half.steps == 60
        assert same(weights(endpoint.halves.half.model), server_half)
        assert endpoint.ledger.digest() == digest
    assert same(weights(disturbed), weights(undisturbed))


def test_features_have_both_budgets_in_training():
    codec = cut_codec("quant-only", uplink_bits=1.5, downlink_bits=2.5)
    endpoint = SplitEndpoint(shared_half(), codec, pipeline_depth=4, decoupled=True)
    with endpoint:
        train(ticket_message(endpoint))
        traffic = endpoint.ledger.of(1, "train")
        evaluation = Ticket.from_message(ticket_message(endpoint, "evaluate"))
    # a quantiser rarely spends its last bit
    assert 3.5 < traffic.uplink_bits_per_entry <= 4.0
    assert traffic.downlink_bits_per_entry == 0
    assert evaluation.codec["uplink-bits"] == 1.5


@pytest.mark.parametrize("codec", ["splitfc", "splitfc-rd"])
def test_codecs_that_leave_rows_or_columns_out(codec):
    cut = cut_codec(codec, uplink_bits=2, downlink_bits=2)
    endpoint = SplitEndpoint(shared_half(), cut, pipeline_depth=4, decoupled=True)
    with endpoint:
        train(ticket_message(endpoint))
        traffic = endpoint.ledger.of(1, "train")
    assert traffic.steps == STEPS
    assert traffic.gradient_error_steps == 0 < traffic.feature_error_steps


def test_what_else_a_session_does_waits_for_the_answers():
    x, y = batches(1)[0]
    features = seeded(DeviceHalf)(x)
    with make_endpoint() as endpoint, connect(ticket_message(endpoint)) as server:
        server.send(features, y)
        server.loss(features.detach(), y).backward()
        server.send(features, y)
        assert server.predict(features).shape == (16, CLASSES)
        server.send(features, y)
        assert server.metrics()["num-examples"] == 4 * 16
        assert endpoint.halves.half.steps == 4


def test_no_gradient_comes_down():
    x, y = batches(1)[0]
    with make_endpoint() as endpoint:
        with connect(ticket_message(endpoint)) as server:
            with pytest.raises(RuntimeError, match=r"server\.send"):
                server.loss(seeded(DeviceHalf)(x), y)
            with pytest.raises(RuntimeError, match=r"server\.send"):
                server.pipelined(seeded(DeviceHalf), batches(1))
        device = RawDevice(endpoint, endpoint.issue("train", "1", 1))
        frame = step_frame(torch.rand(8, 4, 4, 4), label_bytes(8))
        frame.number = 1
        refused = device.ask(frame).refused
        device.drop()
        assert refused.reason == pb.PROTOCOL
        assert "decoupled" in refused.detail
        assert endpoint.halves.half.steps == 0


def test_a_step_that_the_server_refuses_ends_the_session():
    x, y = batches(1)[0]
    with make_endpoint() as endpoint:
        message = ticket_message(endpoint)
        with pytest.raises(LabelsRefused), connect(message) as server:
            server.send(seeded(DeviceHalf)(x), y)
            server.send(seeded(DeviceHalf)(x), y + CLASSES)
        assert endpoint.halves.half.steps == 1
        # nobody else is harmed
        train(ticket_message(endpoint, device="1"))
        assert endpoint.halves.half.steps == 1 + STEPS


def test_last_layers_on_the_device_leave_the_server_half_without_a_loss():
    x, y = batches(1)[0]
    float32 = cut_codec("float32")
    endpoint = SplitEndpoint(shared_half(loss_fn=None), float32, output_codec=float32)
    with (
        endpoint,
        connect(ticket_message(endpoint)) as server,
        pytest.raises(RuntimeError, match=r"server\.forward"),
    ):
        server.send(seeded(DeviceHalf)(x), y)


def test_the_error_of_features_is_of_what_was_sent_whatever_the_loop_writes():
    draw = torch.Generator().manual_seed(0)
    with make_endpoint() as endpoint:
        with connect(ticket_message(endpoint)) as server:
            for _, y in batches(STEPS):
                features = torch.randn(len(y), 4, 4, 4, generator=draw)
                server.send(features, y)
                # as an auxiliary head that begins in place does
                features.relu_()
        traffic = endpoint.ledger.of(1, "train")
    assert traffic.feature_error_steps == 2
    assert traffic.feature_error == 0
