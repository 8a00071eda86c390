"""Mini-batches without rows, as Poisson sampling gives them: a turn with them is the turn without them."""

from functools import partial
from math import isnan
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord
from torch import Tensor, nn

from flwr_splitfc import (
    EndpointConfig,
    SplitClientApp,
    SplitLearning,
    connect,
    cut_codec,
)
from flwr_splitfc.codec import CutCodec
from flwr_splitfc.defence import FeatureDefence
from flwr_splitfc.exchange import HalfTrainer, SharedHalf, SplitEndpoint
from tests.exchange.server_halves import everything, shared_half
from tests.halves import DeviceHalf, ServerHalf, batches, same, seeded, weights
from tests.local_grid import LocalGrid, ticket_message

Batch = tuple[Tensor, Tensor]

SGD = partial(torch.optim.SGD, lr=0.1)
"""On a gradient of zero it changes nothing."""

BATCHES = batches(6)
NONE = (torch.zeros(0, 1, 8, 8), torch.zeros(0).long())
WITH_EMPTY = [NONE, *BATCHES[:2], NONE, NONE, *BATCHES[2:], NONE]
FLOAT32 = cut_codec("float32")
RANDOM = cut_codec("splitfc", uplink_bits=3, downlink_bits=3)
"""What it draws for a step follows from the step's number."""

COUNTED = ("num-examples", "steps", "train_loss", "uplink_bytes", "downlink_bytes")


def rows(features: Tensor) -> Tensor:
    return features


class Structured(nn.Module):
    """Takes features in a dict, with a mask beside them and a part without a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = ServerHalf()

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        part = features["part"] * features["mask"]
        return self.layers(features["hidden"] + part)


def structured(features: Tensor) -> dict[str, Tensor]:
    part = features.detach() / 3
    return {"hidden": features, "mask": features > 0.5, "part": part}


def turn(
    given: list[Batch], codec: CutCodec, server: Any, cut: Any, **options: Any
) -> tuple[list[float], list[Any]]:
    """The losses of a turn, and all that it leaves."""
    half = shared_half(seeded(server), **options)
    model, losses = seeded(DeviceHalf), []
    optimizer = SGD(model.parameters())
    with SplitEndpoint(half, codec) as endpoint:
        with connect(ticket_message(endpoint), optimizer=optimizer) as session:
            for x, y in given:
                optimizer.zero_grad()
                loss = session.loss(cut(model(x)), y)
                loss.backward()
                for weight in model.parameters():
                    assert weight.grad is not None
                    assert weight.grad.any() == (len(x) > 0)
                optimizer.step()
                losses.append(loss.item())
            metrics = session.metrics()
        left = {**everything(endpoint), **weights(model)}
        traffic = endpoint.ledger.of(1, "train")
    assert traffic.rows == metrics["num-examples"]
    return losses, [left, {name: metrics[name] for name in COUNTED}]


@pytest.mark.parametrize("codec", [FLOAT32, RANDOM, cut_codec("splitfc-rd")])
@pytest.mark.parametrize("accumulate_steps", [1, 2])
@pytest.mark.parametrize(
    ("server", "cut"), [(ServerHalf, rows), (Structured, structured)]
)
def test_a_turn_goes_on_after_empty_ones(
    codec: CutCodec, accumulate_steps: int, server: Any, cut: Any
) -> None:
    options = {"accumulate_steps": accumulate_steps}
    losses, (left, metrics) = turn(WITH_EMPTY, codec, server, cut, **options)
    wanted, (left_without, wanted_metrics) = turn(
        BATCHES, codec, server, cut, **options
    )
    assert [isnan(loss) for loss in losses] == [len(x) == 0 for x, _ in WITH_EMPTY]
    assert [loss for loss in losses if not isnan(loss)] == wanted
    assert same(left, left_without)
    assert metrics == wanted_metrics


def test_a_turn_of_empty_ones_alone_trains_nothing() -> None:
    losses, (left, metrics) = turn([NONE, NONE], FLOAT32, ServerHalf, rows)
    _, (untrained, _) = turn([], FLOAT32, ServerHalf, rows)
    assert all(map(isnan, losses))
    assert same(left, untrained)
    assert metrics["num-examples"] == metrics["steps"] == metrics["train_loss"] == 0


@pytest.mark.parametrize("leave_after", [3, len(WITH_EMPTY)])
def test_pipelined(leave_after: int) -> None:
    """A half that stands still has the same features however many are under way."""
    results = []
    for given in (WITH_EMPTY, [batch for batch in WITH_EMPTY if len(batch[0])]):
        model, losses = seeded(DeviceHalf), []
        with SplitEndpoint(shared_half(), RANDOM, pipeline_depth=3) as endpoint:
            with connect(ticket_message(endpoint)) as server:
                for loss in server.pipelined(model, given):
                    loss.backward()
                    losses.append(loss.item())
                    if given is WITH_EMPTY and len(losses) == leave_after:
                        break
                steps = server.metrics()["steps"]
            results.append((losses, everything(endpoint), steps))
    (losses, left, steps), (wanted, wanted_left, wanted_steps) = results
    is_empty = [len(x) == 0 for x, _ in WITH_EMPTY[:leave_after]]
    assert [isnan(loss) for loss in losses] == is_empty
    counted = [loss for loss in losses if not isnan(loss)]
    assert counted == wanted[: len(counted)]
    if leave_after == len(WITH_EMPTY):
        assert same(left, wanted_left)
        assert steps == wanted_steps


@pytest.mark.parametrize("every", [1, 2])
def test_one_way(every: int) -> None:
    """An empty one takes no other one's turn to go up."""
    results = []
    for given in (WITH_EMPTY, BATCHES):
        model = seeded(DeviceHalf)
        with SplitEndpoint(
            shared_half(), RANDOM, decoupled=True, send_every=every, pipeline_depth=2
        ) as endpoint:
            with connect(ticket_message(endpoint)) as server:
                for x, y in given:
                    server.send(model(x), y)
                metrics = server.metrics()
            counted = {name: metrics[name] for name in COUNTED}
            results.append((everything(endpoint), counted))
    (left, counted), (wanted, wanted_counted) = results
    assert same(left, wanted)
    assert counted == wanted_counted
    assert counted["steps"] == len(BATCHES) // every


@pytest.mark.parametrize("transport", ["stream", "messages"])
def test_a_client_app(transport: str) -> None:
    def run(given: list[Batch]) -> list[dict[str, Tensor]]:
        app = SplitClientApp(
            DeviceHalf, lambda _: (given, BATCHES), SGD, loss_fn=nn.CrossEntropyLoss()
        )
        strategy = SplitLearning(
            seeded(ServerHalf),
            nn.CrossEntropyLoss(),
            partial(torch.optim.Adam, lr=1e-2),
            codec=RANDOM,
            endpoint=EndpointConfig(transport=transport),
        )
        arrays = ArrayRecord(seeded(DeviceHalf).state_dict())
        result = strategy.start(LocalGrid(app, 2, workers=0), arrays, 2)
        device = result.arrays.to_torch_state_dict()
        return [device, weights(strategy.server_model)]

    for left, wanted in zip(run(WITH_EMPTY), run(BATCHES), strict=True):
        assert same(left, wanted)


@pytest.mark.parametrize("call", ["predict", "forward"])
def test_an_output_of_no_rows_is_refused_and_the_turn_goes_on(call: str) -> None:
    x, _ = BATCHES[0]
    model = seeded(DeviceHalf)
    half = HalfTrainer(seeded(ServerHalf), None, SGD, device="cpu")
    message = rf"server.{call} got features of shape \(0, 4, 4, 4\), .* Skip the batch"
    with (
        SplitEndpoint(SharedHalf(half), FLOAT32, output_codec=FLOAT32) as endpoint,
        connect(ticket_message(endpoint)) as server,
    ):
        ask = getattr(server, call)
        with pytest.raises(ValueError, match=message):
            ask(model(NONE[0]))
        output = ask(model(x))
        assert len(output) == len(x)
        if call == "forward":
            output.sum().backward()


@pytest.mark.parametrize("settings", [(1.0, 0.0, 0.0), (1.0, 0.5, 0.0), (0, 0, 0.5)])
def test_a_defence_lets_them_through(settings: tuple[float, float, float]) -> None:
    model = seeded(DeviceHalf)
    x, _ = NONE
    defended = FeatureDefence(*settings)(x, model(x))
    assert defended.shape == (0, 4, 4, 4)
    defended.sum().backward()
    assert not any(weight.grad.any() for weight in model.parameters())
