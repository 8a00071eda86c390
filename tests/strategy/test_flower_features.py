"""Flower's own mods and strategies around split learning: those of the installed flwr."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp import mod as flower_mods
from flwr.serverapp import strategy as flower_strategies
from flwr.serverapp.strategy import FedAvg, Strategy
from torch import nn

from flwr_splitfc import (
    EndpointConfig,
    RoundRobin,
    RunFailed,
    SplitClientApp,
    SplitFC,
    SplitFedV1,
    SplitLearning,
    answer_device_query,
    connect,
    model_codec_mod,
)
from tests.halves import DeviceHalf, ServerHalf, batches, seeded
from tests.local_grid import LocalGrid

ADAM = partial(torch.optim.Adam, lr=1e-2)
DEVICES = 5  # as Bulyan wants

CLIPPED = {"clipping_norm": 1.0, "noise_multiplier": 0.01, "num_sampled_clients": 5}
ADAPTED = {"noise_multiplier": 0.3, "num_sampled_clients": 5}

# what has to be said to make one; the others need nothing
STRATEGY_OPTIONS: dict[str, dict[str, Any]] = {
    "FedProx": {"proximal_mu": 0.1},
    "QFedAvg": {"client_learning_rate": 0.1},
    "Bulyan": {"num_malicious_nodes": 0},
}
DP_OPTIONS = {
    "DifferentialPrivacyClientSideAdaptiveClipping": ADAPTED,
    "DifferentialPrivacyServerSideAdaptiveClipping": ADAPTED,
    "DifferentialPrivacyClientSideFixedClipping": CLIPPED,
    "DifferentialPrivacyServerSideFixedClipping": CLIPPED,
}
# trees, and what strategies are made of
NO_STRATEGIES = {"FedXgbBagging", "FedXgbCyclic", "Result", "Strategy"}
STRATEGIES = sorted(set(flower_strategies.__all__) - NO_STRATEGIES)

# the strategy that a mod goes with
MOD_STRATEGY = {
    "fixedclipping_mod": "DifferentialPrivacyClientSideFixedClipping",
    "adaptiveclipping_mod": "DifferentialPrivacyClientSideAdaptiveClipping",
}
# what a strategy has to be told beside a mod
STRATEGY_SETTINGS: dict[str, dict[str, Any]] = {
    "LocalDpMod": {"optimizer_state": "fresh"}
}
# those that look, and change nothing
LOOKING = ("arrays_size_mod", "message_size_mod")


def make_mod(name: str) -> Any:
    mod = getattr(flower_mods, name)
    if name == "LocalDpMod":
        return mod(clipping_norm=1.0, sensitivity=0.01, epsilon=10.0, delta=0.01)
    return mod


def make_strategy(name: str) -> Strategy:
    kind = getattr(flower_strategies, name)
    if name in DP_OPTIONS:
        return kind(FedAvg(), **DP_OPTIONS[name])
    return kind(**STRATEGY_OPTIONS.get(name, {}))


def load_data(context: Context) -> Any:
    return batches(2), batches(1)


def whole_app(mods: list[Any], train_mods: list[Any]) -> ClientApp:
    return SplitClientApp(DeviceHalf, load_data, ADAM, mods=mods, train_mods=train_mods)


def own_app(mods: list[Any], train_mods: list[Any]) -> ClientApp:
    """With a training loop of its own."""
    app = ClientApp(mods=[model_codec_mod, *mods])
    app.query("split_device")(answer_device_query)
    app.train(mods=train_mods)(own_train)
    app.evaluate()(own_evaluate)
    return app


def own_train(message: Message, context: Context) -> Message:
    model = received(message)
    optimizer = ADAM(model.parameters())
    with connect(message, context, optimizer=optimizer) as server:
        for x, y in batches(2):
            optimizer.zero_grad()
            server.loss(model(x), y).backward()
            optimizer.step()
        metrics = MetricRecord({**server.metrics()})
    arrays = ArrayRecord(model.state_dict())
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


def own_evaluate(message: Message, context: Context) -> Message:
    model = received(message)
    with torch.no_grad(), connect(message, context) as server:
        for x, _ in batches(1):
            server.predict(model(x))
        metrics = MetricRecord({**server.metrics()})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def received(message: Message) -> nn.Module:
    model = seeded(DeviceHalf)
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    return model


def run(
    app: ClientApp, strategy: type[SplitLearning] = SplitFC, **options: Any
) -> SplitLearning:
    made = strategy(seeded(ServerHalf), nn.CrossEntropyLoss(), ADAM, **options)
    arrays = ArrayRecord(seeded(DeviceHalf).state_dict())
    made.start(LocalGrid(app, DEVICES), arrays, 2)
    return made


def nothing_failed(strategy: SplitLearning) -> None:
    assert [row["failures"] for row in strategy.progress.rows] == [{}, {}]
    # each device goes by its own name
    names = [str(number) for number in range(DEVICES)]
    assert list(strategy.ledger.devices("train")) == names
    assert strategy.ledger.total("evaluate").steps == 2 * DEVICES


@pytest.mark.parametrize("make_app", [whole_app, own_app])
@pytest.mark.parametrize("strategy", [SplitLearning, SplitFC, SplitFedV1])
@pytest.mark.parametrize("name", flower_mods.__all__)
def test_flowers_mods(
    name: str,
    strategy: type[SplitLearning],
    make_app: Callable[[list[Any], list[Any]], ClientApp],
) -> None:
    """With arrays as they are, and coded."""
    devices = make_strategy(MOD_STRATEGY.get(name, "FedAvg"))
    mods = [make_mod(name)] if name in LOOKING else []
    train_mods = [] if name in LOOKING else [make_mod(name)]
    app = make_app(mods, train_mods)
    settings = STRATEGY_SETTINGS.get(name, {})
    nothing_failed(run(app, strategy, devices=devices, **settings))


@pytest.mark.parametrize("make_app", [whole_app, own_app])
def test_a_mod_that_evaluation_cannot_have_says_where_it_belongs(
    make_app: Callable[[list[Any], list[Any]], ClientApp],
) -> None:
    app = make_app([make_mod("LocalDpMod")], [])
    strategy = run(app, devices=FedAvg(), **STRATEGY_SETTINGS["LocalDpMod"])
    for row in strategy.progress.rows:
        assert row["failures"].keys() == {"0", "1", "2", "3", "4"}
        for why in row["failures"].values():
            assert "LocalDpMod expects exactly one ArrayRecord, but found 0" in why
            assert "app.train(mods=[...]), or train_mods of SplitClientApp" in why
        # it trained
        assert row["steps"] == 2 * DEVICES


@pytest.mark.parametrize("name", ["LocalDpMod", "fixedclipping_mod"])
def test_a_mod_that_messages_cannot_have_names_the_transport(name: str) -> None:
    devices = make_strategy(MOD_STRATEGY.get(name, "FedAvg"))
    app = whole_app([], [make_mod(name)])
    settings = STRATEGY_SETTINGS.get(name, {})
    endpoint = EndpointConfig(transport="messages")
    with pytest.raises(RunFailed, match=r'found 0 .* transport "stream"'):
        run(app, devices=devices, endpoint=endpoint, **settings)


@pytest.mark.parametrize("name", STRATEGIES)
def test_flowers_strategies(name: str) -> None:
    mods = [mod for mod, wanted in MOD_STRATEGY.items() if wanted == name]
    app = whole_app([], [make_mod(mod) for mod in mods])
    nothing_failed(run(app, devices=make_strategy(name)))


@pytest.mark.parametrize("name", DP_OPTIONS)
@pytest.mark.parametrize("devices", [None, FedAvg(), RoundRobin()])
def test_one_around_the_split_strategy_says_where_it_belongs(
    name: str, devices: Strategy | None
) -> None:
    split = SplitFC(seeded(ServerHalf), nn.CrossEntropyLoss(), ADAM, devices=devices)
    wrapper = getattr(flower_strategies, name)(split, **DP_OPTIONS[name])
    grid = LocalGrid(whole_app([], []), DEVICES)
    with pytest.raises(
        TypeError, match=r"wrapped around SplitFC.*SplitFC\(\.\.\., dev"
    ):
        wrapper.start(grid, ArrayRecord(seeded(DeviceHalf).state_dict()), 2)
    assert not grid.trained


class Saving(FedAvg):
    def start(self, *arguments: Any, **options: Any) -> Any:
        raise AssertionError


def test_a_start_that_is_not_called_is_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level("WARNING", "flwr"):
        for name in STRATEGIES:
            devices = make_strategy(name)
            SplitFC(seeded(ServerHalf), nn.CrossEntropyLoss(), ADAM, devices=devices)
        assert "start()" not in caplog.text
        SplitFC(seeded(ServerHalf), nn.CrossEntropyLoss(), ADAM, devices=Saving())
    assert "Saving has a start() of its own, which is not called" in caplog.text


def moved(devices: Strategy, train_mods: list[Any]) -> float:
    """How far the device half goes in a round."""
    strategy = SplitFC(
        seeded(ServerHalf),
        nn.CrossEntropyLoss(),
        ADAM,
        devices=devices,
        model_bits=32,
        optimizer_state="fresh",
    )
    start = ArrayRecord(seeded(DeviceHalf).state_dict())
    grid = LocalGrid(whole_app([], train_mods), DEVICES)
    end = strategy.start(grid, start, 1).arrays.to_torch_state_dict()
    before = start.to_torch_state_dict()
    parts = [(end[name] - before[name]).flatten() for name in before]
    return torch.cat(parts).norm().item()


CLIPPING = 1e-3
SERVER_SIDE = {
    "clipping_norm": CLIPPING,
    "noise_multiplier": 0.0,
    "num_sampled_clients": 5,
}


def test_flowers_differential_privacy_bounds_how_far_device_halves_move() -> None:
    """On devices by `LocalDpMod`, and by both strategies with a fixed norm."""
    plain = moved(FedAvg(), [])
    assert plain > 10 * CLIPPING
    # next to no noise
    local = flower_mods.LocalDpMod(CLIPPING, sensitivity=1e-9, epsilon=1.0, delta=0.1)
    clipped = {
        "local": moved(FedAvg(), [local]),
        "on the server": moved(
            flower_strategies.DifferentialPrivacyServerSideFixedClipping(
                FedAvg(), **SERVER_SIDE
            ),
            [],
        ),
        "on devices": moved(
            flower_strategies.DifferentialPrivacyClientSideFixedClipping(
                FedAvg(), **SERVER_SIDE
            ),
            [flower_mods.fixedclipping_mod],
        ),
    }
    for distance in clipped.values():
        assert 0 < distance < 1.01 * CLIPPING


MOMENTUM = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
PLAIN = partial(torch.optim.SGD, lr=0.1)


@pytest.mark.parametrize("optimizer", [ADAM, MOMENTUM])
@pytest.mark.parametrize("where", ["mods", "train_mods"])
@pytest.mark.parametrize("optimizer_state", ["per-device", "relay"])
def test_no_optimizer_state_goes_up_beside_a_noisy_half(
    optimizer: Any, where: str, optimizer_state: str
) -> None:
    """It is of the gradient, which the noise is there to hide."""
    mods: dict[str, Any] = {where: [make_mod("LocalDpMod")]}
    app = SplitClientApp(DeviceHalf, load_data, optimizer, **mods)
    with pytest.raises(RunFailed, match=r'LocalDpMod.*optimizer-state = "fresh"'):
        run(app, devices=FedAvg(), optimizer_state=optimizer_state)


@pytest.mark.parametrize(
    ("optimizer", "optimizer_state"), [(PLAIN, "per-device"), (ADAM, "fresh")]
)
def test_a_noisy_half_goes_up_where_there_is_no_such_state(
    optimizer: Any, optimizer_state: str
) -> None:
    mods = [make_mod("LocalDpMod")]
    app = SplitClientApp(DeviceHalf, load_data, optimizer, train_mods=mods)
    strategy = run(app, devices=FedAvg(), optimizer_state=optimizer_state)
    nothing_failed(strategy)
    assert strategy.ledger.total("train").uplink_bytes["state"] == 0


def test_flower_has_no_secure_aggregation_for_these_strategies() -> None:
    """docs/privacy.md says so; once there is one, it has to be tried."""
    for names in (flower_mods.__all__, flower_strategies.__all__):
        assert not [name for name in names if "sec" in name.lower()]
