"""The error at the cut, measured by the side that encoded."""

import json
import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from flwr_splitfc import connect, cut_codec
from flwr_splitfc.codec import CutCodec, Link, pack_labels
from flwr_splitfc.exchange import SplitEndpoint, Traffic
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.error_samples import is_measured
from flwr_splitfc.exchange.protocol.seeds import seeded_generator
from flwr_splitfc.exchange.protocol.tensors import to_matrix
from flwr_splitfc.exchange.protocol.ticket import Purpose
from flwr_splitfc.exchange.server.accounts.traffic import (
    traffic_from_json,
    traffic_to_json,
)
from tests.exchange.raw_device import RawDevice
from tests.exchange.server_halves import shared_half
from tests.exchange.test_u_shape import make_endpoint, tail
from tests.halves import DeviceHalf, ServerHalf, batches, seeded
from tests.local_grid import ticket_message

CODECS = {
    "float32": cut_codec("float32"),
    "int8": cut_codec("int8"),
    "top-s": cut_codec("top-s", uplink_bits=3, downlink_bits=3),
    # columns are dropped, and scaled
    "splitfc": cut_codec("splitfc", uplink_bits=3, downlink_bits=3, reduction=2),
    # rows are left out
    "splitfc-rd": cut_codec("splitfc-rd", uplink_bits=0.48, downlink_bits=4.0),
}


def measured(server_round: int, steps: int) -> list[int]:
    return [step for step in range(1, steps + 1) if is_measured(server_round, step)]


def test_one_step_in_ten_is_measured_and_the_first_of_a_run_is() -> None:
    assert measured(1, 20) == [1, 11]
    for server_round in range(1, 200):
        assert len(measured(server_round, 10)) == 1
    turns_of_one_step = [len(measured(number, 1)) for number in range(1, 201)]
    for first in range(0, 200, 10):
        assert sum(turns_of_one_step[first : first + 10]) == 1


def test_each_device_is_measured_where_many_take_turns_of_one_step() -> None:
    for devices in range(1, 61):
        for first in range(1, devices + 1):
            rounds = range(first, 100 * devices, devices)
            assert any(is_measured(number, 1) for number in rounds)


def squares(matrix: Tensor) -> float:
    return float(matrix.double().square().sum())


def features_error(exact: Tensor, seen: Tensor) -> float:
    return squares(seen - exact) / squares(exact - exact.mean(0))


def gradient_as_seen(
    codec: CutCodec, seen: Tensor, link: Link, shape: torch.Size, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradient by the rows and columns that were sent, exact and decoded."""
    sent = link.sent_rows(seen).requires_grad_()
    outputs = seeded(ServerHalf)(sent.view(link.sent, *shape[1:]))
    nn.functional.cross_entropy(outputs, link.sent_rows(labels)).backward()
    assert sent.grad is not None
    gradient = link.all_rows(sent.grad)
    decoded = codec.decode_gradient(codec.encode_gradient(gradient, link), link)
    return link.restrict(gradient), link.restrict(decoded)


@pytest.mark.parametrize("name", CODECS)
def test_errors_are_those_of_what_the_other_side_decodes(name: str) -> None:
    codec = CODECS[name]
    x, y = batches(1)[0]
    features = seeded(DeviceHalf)(x).detach().requires_grad_()
    with SplitEndpoint(shared_half(), codec) as endpoint:
        with connect(ticket_message(endpoint)) as session:
            session.loss(features, y).backward()
        traffic = endpoint.ledger.of(1, "train")

    generator = seeded_generator(session.seed, 1)
    array, _ = codec.encode_features(features, generator=generator)
    seen, link = codec.decode_features(array, expect=(16, 64))
    exact = link.sent_rows(features.detach().flatten(1))
    wanted = features_error(exact, link.sent_rows(seen))
    assert traffic.feature_error == pytest.approx(wanted, rel=1e-5)

    exact, decoded = gradient_as_seen(codec, seen, link, features.shape, y)
    wanted = squares(decoded - exact) / squares(exact)
    assert traffic.gradient_error == pytest.approx(wanted, rel=1e-4)
    assert traffic.feature_error_steps == traffic.gradient_error_steps == 1
    assert (traffic.feature_error == 0) == (name == "float32")


def test_a_turn_has_the_mean_of_the_steps_that_were_measured() -> None:
    with SplitEndpoint(shared_half(), CODECS["int8"]) as endpoint:
        with connect(ticket_message(endpoint)) as session:
            for x, y in batches(12):
                session.loss(seeded(DeviceHalf)(x), y).backward()
        traffic = endpoint.ledger.of(1, "train")
        of_device = endpoint.ledger.devices("train")["0"]
    assert traffic.feature_error_steps == traffic.gradient_error_steps == 2
    metrics = traffic.metrics()
    assert metrics["feature_error"] == traffic.feature_error_sum / 2
    assert metrics["gradient_error"] == traffic.gradient_error_sum / 2
    assert of_device.metrics()["feature_error"] == metrics["feature_error"]


def test_the_features_cut_is_measured_where_the_loss_is_the_devices() -> None:
    last = seeded(tail)
    x, y = batches(1)[0]
    features = seeded(DeviceHalf)(x).detach().requires_grad_()
    with make_endpoint(codec="splitfc", bits=(4, 4)) as endpoint:
        codec = endpoint.codec
        with connect(ticket_message(endpoint)) as session:
            output = session.forward(features)
            nn.functional.cross_entropy(last(output), y).backward()
        traffic = endpoint.ledger.of(1, "train")
    generator = seeded_generator(session.seed, 1)
    array, _ = codec.encode_features(features, generator=generator, all_rows=True)
    seen, _ = codec.decode_features(array, expect=(16, 64))
    wanted = features_error(features.detach().flatten(1), seen)
    assert traffic.feature_error == pytest.approx(wanted, rel=1e-5)
    assert traffic.gradient_error_steps == 1
    assert 0 < traffic.gradient_error < 1


class Observed(nn.Module):
    """A server half that notes what reaches it, and the gradient that it gives."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 32)
        self.seen: dict[str, Tensor] = {}

    def forward(self, features: Tensor) -> Tensor:
        output = self.layer(features.flatten(1))
        self.seen |= {"features": features.detach(), "output": output.detach()}
        if features.requires_grad:
            features.register_hook(partial(self._note, "gradient"))
            output.register_hook(partial(self._note, "output_gradient"))
        return output

    def _note(self, name: str, gradient: Tensor) -> None:
        self.seen[name] = gradient.detach()


@pytest.mark.parametrize("of_features", ["float32", "quant-only", "splitfc-rd"])
@pytest.mark.parametrize("of_output", ["float32", "quant-only", "int8"])
def test_of_two_cuts_the_larger_error_of_each_direction_counts(
    of_features: str, of_output: str
) -> None:
    last = seeded(tail)
    x, y = batches(1)[0]
    features = seeded(DeviceHalf)(x).detach().requires_grad_()
    with make_endpoint(Observed, of_features, of_output, (3, 2)) as endpoint:
        with connect(ticket_message(endpoint)) as session:
            output = session.forward(features)
            output.retain_grad()
            nn.functional.cross_entropy(last(output), y).backward()
        traffic = endpoint.ledger.of(1, "train")
        at_server = endpoint.halves.half.model.seen
    assert features.grad is not None
    assert output.grad is not None

    exact, seen = features.detach(), at_server["features"]
    up = features_error(exact.flatten(1), seen.flatten(1))
    output_gradient = at_server["output_gradient"]
    up_second = squares(output_gradient - output.grad) / squares(output.grad)
    assert traffic.feature_error == pytest.approx(max(up, up_second), rel=1e-4)

    gradient = at_server["gradient"]
    down = squares(features.grad - gradient) / squares(gradient)
    down_second = features_error(at_server["output"], output.detach())
    assert traffic.gradient_error == pytest.approx(max(down, down_second), rel=1e-4)
    assert traffic.feature_error_steps == traffic.gradient_error_steps == 1


def test_evaluation_measures_nothing() -> None:
    with SplitEndpoint(shared_half(), CODECS["int8"]) as endpoint:
        message = ticket_message(endpoint, "evaluate")
        with connect(message) as session, torch.no_grad():
            session.predict(seeded(DeviceHalf)(batches(1)[0][0]))
        traffic = endpoint.ledger.of(1, "evaluate")
    assert math.isnan(traffic.feature_error)
    assert math.isnan(traffic.gradient_error)
    assert not {"feature_error", "gradient_error"} & set(traffic.metrics())


def told(purpose: Purpose, error_sum: float, error_steps: int) -> Traffic:
    """What is entered of a device that makes one step and then tells these numbers."""
    codec = CODECS["float32"]
    x, y = batches(1)[0]
    array, _ = codec.encode_features(seeded(DeviceHalf)(x))
    matrix = to_matrix(array)
    step = pb.DeviceFrame(
        number=1, step=pb.Step(features=matrix, labels=pack_labels(y))
    )
    if purpose == "evaluate":
        array, _ = codec.encode_features(seeded(DeviceHalf)(x), training=False)
        predict = pb.Predict(features=to_matrix(array))
        step = pb.DeviceFrame(number=1, predict=predict)
    close = pb.Close(feature_error_sum=error_sum, feature_error_steps=error_steps)
    with SplitEndpoint(shared_half(), codec) as endpoint:
        device = RawDevice(endpoint, endpoint.issue(purpose, "0", 1))
        assert device.ask(step).WhichOneof("kind") in ("stepped", "predicted")
        answer = device.ask(pb.DeviceFrame(number=2, close=close))
        assert answer.WhichOneof("kind") == "closed"
        device.drop()
        return endpoint.ledger.of(1, purpose)


@pytest.mark.parametrize(
    ("error_sum", "error_steps"),
    [
        (math.nan, 1),
        (math.inf, 1),
        (-0.1, 1),
        (1.1e6, 1),
        (0.1, 0),
        (0.1, 2),
        (0.1, 2**32 - 1),
    ],
)
def test_errors_that_cannot_be_are_not_entered(
    error_sum: float, error_steps: int
) -> None:
    traffic = told("train", error_sum, error_steps)
    assert traffic.steps == 1
    assert (traffic.feature_error_sum, traffic.feature_error_steps) == (0, 0)


def test_errors_that_can_be_are_entered_of_training() -> None:
    assert told("train", 0.25, 1).feature_error == 0.25
    assert told("evaluate", 0.25, 1).feature_error_steps == 0


def test_counts_of_versions_without_errors_are_read() -> None:
    traffic = Traffic(steps=3, feature_error_sum=0.5, feature_error_steps=1)
    counts = traffic_to_json(traffic)
    assert traffic_from_json(json.loads(json.dumps(counts))) == traffic
    old = {key: count for key, count in counts.items() if "error" not in key}
    assert len(old) == len(counts) - 4
    assert traffic_from_json(old) == Traffic(steps=3)
