"""A warning where the gradient at the cut has vanished, or nobody uses it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp.strategy import FedAvg, FedAvgM
from torch import nn

from flwr_splitfc import (
    DeviceApp,
    RoundRobin,
    SplitClientApp,
    SplitFC,
    SplitLearning,
    connect,
)
from tests.halves import DeviceHalf, ServerHalf, batches, seeded
from tests.local_grid import LocalGrid

ADAM = partial(torch.optim.Adam, lr=1e-2)


def with_batch_norm() -> nn.Module:
    """Its running statistics go on, with a gradient and without."""
    return nn.Sequential(DeviceHalf(), nn.BatchNorm2d(4))


class Wave(nn.Module):
    """All its weights are complex."""

    def __init__(self) -> None:
        super().__init__()
        self.wave = nn.Parameter(torch.randn(64, 64, dtype=torch.complex64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.flatten(1).to(torch.complex64) @ self.wave).abs()


def dead_half() -> nn.Module:
    """No unit of the first layer is ever above 0: no gradient comes out."""
    half = seeded(ServerHalf)
    nn.init.constant_(half.layers[1].bias, -1e6)
    return half


def warnings_of(
    caplog: pytest.LogCaptureFixture,
    server_half: nn.Module,
    *,
    strategy: type[SplitLearning] = SplitLearning,
    device_half: Any = DeviceHalf,
    rounds: int = 6,
    config: dict[str, float] | None = None,
    **options: Any,
) -> list[str]:
    app = SplitClientApp(device_half, lambda context: (batches(2), batches(1)), ADAM)
    run = strategy(server_half, nn.CrossEntropyLoss(), ADAM, **options)
    arrays = ArrayRecord(seeded(device_half).state_dict())
    run.start(
        LocalGrid(app, 2), arrays, rounds, train_config=ConfigRecord(config or {})
    )
    return [line for line in caplog.messages if "Devices learn nothing" in line]


@pytest.mark.parametrize("strategy", [SplitLearning, SplitFC])
@pytest.mark.parametrize("device_half", [DeviceHalf, with_batch_norm])
@pytest.mark.parametrize("devices", [RoundRobin, FedAvg, FedAvgM])
def test_a_gradient_that_vanished_is_warned_of_once(
    strategy: type[SplitLearning],
    device_half: Any,
    devices: type[FedAvg],
    caplog: pytest.LogCaptureFixture,
) -> None:
    options: dict[str, Any] = {"strategy": strategy, "device_half": device_half}
    assert not warnings_of(caplog, seeded(ServerHalf), devices=devices(), **options)
    (warning,) = warnings_of(caplog, dead_half(), devices=devices(), **options)
    assert "(round 3 is the last)" in warning
    assert "lower the learning rate" in warning


def test_so_are_devices_that_do_not_train(caplog: pytest.LogCaptureFixture) -> None:
    still = {"learning-rate": 0.0}
    assert not warnings_of(caplog, seeded(ServerHalf), rounds=2, config=still)
    assert len(warnings_of(caplog, seeded(ServerHalf), rounds=3, config=still)) == 1


def test_complex_weights_that_train_are_not_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server_half = seeded(ServerHalf)
    assert not warnings_of(caplog, server_half, device_half=Wave, rounds=3)


def test_complex_weights_that_stay_are(caplog: pytest.LogCaptureFixture) -> None:
    still = {"learning-rate": 0.0}
    server_half = seeded(ServerHalf)
    options: dict[str, Any] = {"rounds": 3, "config": still}
    assert warnings_of(caplog, server_half, device_half=Wave, **options)


def only_predicts(message: Message, context: Context) -> Message:
    with connect(message) as session:
        session.predict(seeded(DeviceHalf)(batches(1)[0][0]).detach())
        return reply_with(message, session.metrics())


def opens_no_session(message: Message, context: Context) -> Message:
    return reply_with(message, {})


def reply_with(message: Message, metrics: dict[str, Any]) -> Message:
    content = RecordDict(
        {
            "arrays": message.content.array_records["arrays"],
            "metrics": MetricRecord({**metrics, "num-examples": 8}),
        }
    )
    return Message(content, reply_to=message)


@pytest.mark.parametrize("train", [only_predicts, opens_no_session])
def test_a_server_half_that_nobody_trains_is_warned_of_once(
    train: Callable[[Message, Context], Message], caplog: pytest.LogCaptureFixture
) -> None:
    app = DeviceApp()
    app.train()(train)
    run = SplitLearning(
        seeded(ServerHalf),
        nn.CrossEntropyLoss(),
        ADAM,
        devices=RoundRobin(fraction_evaluate=0.0),
    )
    run.start(LocalGrid(app, 2), ArrayRecord(seeded(DeviceHalf).state_dict()), 3)
    (warning,) = (line for line in caplog.messages if "was not trained" in line)
    assert warning.startswith("The server half was not trained in round 1")
    assert "server.loss(features, labels)" in warning


def trains(message: Message, context: Context) -> Message:
    with connect(message) as session:
        session.loss(seeded(DeviceHalf)(batches(1)[0][0]), batches(1)[0][1]).backward()
        return reply_with(message, session.metrics())


def evaluates_alone(message: Message, context: Context) -> Message:
    metrics = MetricRecord({"eval_acc": 0.1, "num-examples": 8})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def evaluates_nothing(message: Message, context: Context) -> Message:
    metrics = MetricRecord({"eval_acc": 0.0, "num-examples": 0})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def evaluates(message: Message, context: Context) -> Message:
    with connect(message) as session:
        session.predict(seeded(DeviceHalf)(batches(1)[0][0]))
        metrics = MetricRecord({**session.metrics(), "eval_acc": 0.1})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def tells_its_count(message: Message, context: Context) -> Message:
    metrics = MetricRecord({"num-examples": 8})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


@pytest.mark.parametrize(
    ("evaluate", "is_warned_of"),
    [
        (evaluates_alone, True),
        (evaluates, False),
        (tells_its_count, False),
        (evaluates_nothing, False),
    ],
)
def test_metrics_of_the_device_half_alone_are_warned_of_once(
    evaluate: Callable[[Message, Context], Message],
    is_warned_of: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = DeviceApp()
    app.train()(trains)
    app.evaluate()(evaluate)
    # a mean over no sample is the strategy's error
    devices = FedAvg(evaluate_metrics_aggr_fn=lambda records, key: MetricRecord())
    run = SplitLearning(
        seeded(ServerHalf), nn.CrossEntropyLoss(), ADAM, devices=devices
    )
    run.start(LocalGrid(app, 2), ArrayRecord(seeded(DeviceHalf).state_dict()), 2)
    warnings = [line for line in caplog.messages if "predicted nothing" in line]
    assert len(warnings) == is_warned_of
    if is_warned_of:
        assert "in the evaluation of round 1, though devices reported" in warnings[0]


def test_decoupled_devices_may_evaluate_alone(caplog: pytest.LogCaptureFixture) -> None:
    def sends(message: Message, context: Context) -> Message:
        with connect(message) as session:
            session.send(seeded(DeviceHalf)(batches(1)[0][0]), batches(1)[0][1])
            return reply_with(message, session.metrics())

    app = DeviceApp()
    app.train()(sends)
    app.evaluate()(evaluates_alone)
    run = SplitLearning(
        seeded(ServerHalf),
        nn.CrossEntropyLoss(),
        ADAM,
        devices=FedAvg(),
        decoupled=True,
    )
    run.start(LocalGrid(app, 2), ArrayRecord(seeded(DeviceHalf).state_dict()), 1)
    assert run.ledger.total("train").steps == 2
    assert "predicted nothing" not in caplog.text
