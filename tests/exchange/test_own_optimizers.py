"""Optimizers that keep state where torch's own do not, on devices and in the server half."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord
from torch import Tensor, nn

from flwr_splitfc import (
    EndpointConfig,
    RoundRobin,
    SplitClientApp,
    SplitLearning,
    connect,
    cut_codec,
)
from flwr_splitfc.exchange import HalfTrainer, SplitEndpoint, StepRefused
from flwr_splitfc.exchange.device.optimizer_state import start_from
from flwr_splitfc.exchange.server.turn.device_states import DeviceStates
from tests.exchange.server_halves import shared_half
from tests.halves import DeviceHalf, ServerHalf, batches, same, seeded, weights
from tests.local_grid import LocalGrid, ticket_message
from tests.own_optimizers import AveragingSGD, BareLookahead, GroupAdam, Lookahead

LOSS = nn.CrossEntropyLoss()
SGD = partial(torch.optim.SGD, lr=0.1)
DATA = batches(3)
ROUNDS = 4


def lookahead(parameters: Any) -> Lookahead:
    return Lookahead(torch.optim.Adam(parameters, lr=1e-2))


def bare_lookahead(parameters: Any) -> BareLookahead:
    return BareLookahead(torch.optim.Adam(parameters, lr=1e-2))


# -- on devices ------------------------------------------------------------------------


def in_turns(optimizer: Any, devices: int, **options: Any) -> dict[str, Tensor]:
    """Train in turns of three steps, on devices with the same data."""
    app = SplitClientApp(DeviceHalf, lambda context: (DATA, DATA), optimizer)
    strategy = SplitLearning(
        seeded(ServerHalf),
        LOSS,
        SGD,
        device="cpu",
        devices=RoundRobin(min_available_nodes=devices, fraction_evaluate=0.0),
        **options,
    )
    arrays = ArrayRecord(seeded(DeviceHalf).state_dict())
    result = strategy.start(LocalGrid(app, devices), arrays, ROUNDS)
    return {**result.arrays.to_torch_state_dict(), **named(strategy.server_model)}


def in_one(optimizer: Any) -> dict[str, Tensor]:
    """Train the unsplit model in one go."""
    device, server = seeded(DeviceHalf), seeded(ServerHalf)
    optimizers = [optimizer(device.parameters()), SGD(server.parameters())]
    for x, y in ROUNDS * DATA:
        device.zero_grad()
        server.zero_grad()
        LOSS(server(device(x)), y).backward()
        for one in optimizers:
            one.step()
    return {**weights(device), **named(server)}


def named(server: nn.Module) -> dict[str, Tensor]:
    return {f"server.{name}": value for name, value in weights(server).items()}


@pytest.mark.parametrize("optimizer", [GroupAdam, AveragingSGD.ready, lookahead])
@pytest.mark.parametrize(
    ("devices", "options"),
    [
        (2, {"optimizer_state": "relay"}),
        (1, {"optimizer_state": "per-device"}),
        (2, {"endpoint": EndpointConfig(transport="messages")}),
    ],
    ids=["relay", "per-device", "messages"],
)
def test_turns_are_one_long_turn(
    optimizer: Any, devices: int, options: Any, caplog: pytest.LogCaptureFixture
) -> None:
    trained = in_turns(optimizer, devices, **options)
    assert same(trained, in_one(optimizer))
    assert "afresh" not in caplog.text


Turn = Callable[[nn.Module, Any, Any], None]


def turns_of_a_loop(make: Any, turn: Turn) -> tuple[dict[str, Tensor], list[Any]]:
    """The device half after three turns of a loop, and its optimizers as they began."""
    half, began = seeded(DeviceHalf), []
    server = shared_half(seeded(ServerHalf), optimizer=partial(SGD, lr=0.0))
    states = DeviceStates("relay")
    with SplitEndpoint(server, cut_codec("float32"), states=states) as endpoint:
        for device in ("0", "1", "2"):
            optimizer = make(half.parameters())
            message = ticket_message(endpoint, device=device)
            with connect(message, optimizer=optimizer) as session:
                began.append(deepcopy(optimizer.param_groups[0]))
                turn(half, optimizer, session.loss)
            endpoint.replied(session.ticket.token)
    return weights(half), began


@pytest.mark.parametrize("make", [AveragingSGD, AveragingSGD.ready])
def test_weights_left_for_evaluation_train_on(make: Any) -> None:
    """Whether the loop makes the optimizer ready, or who makes it does."""

    def turn(half: nn.Module, optimizer: AveragingSGD, loss_of: Any) -> None:
        optimizer.train()
        for x, y in DATA:
            optimizer.zero_grad()
            loss_of(half(x), y).backward()
            optimizer.step()
        optimizer.eval()

    server, alone = seeded(ServerHalf), seeded(DeviceHalf)
    optimizer = make(alone.parameters())
    for _ in range(3):
        turn(alone, optimizer, lambda features, y: LOSS(server(features), y))
    trained, _ = turns_of_a_loop(make, turn)
    assert same(trained, weights(alone))


class Renamed(GroupAdam):
    """No argument of its constructor has the name of the setting."""

    def __init__(self, params: Any, **settings: float) -> None:
        super().__init__(params, **settings)


@pytest.mark.parametrize("make", [GroupAdam, Renamed])
def test_a_schedule_of_one_turn_is_not_that_of_the_next(make: Any) -> None:
    def turn(half: nn.Module, optimizer: GroupAdam, loss_of: Any) -> None:
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        for x, y in DATA:
            optimizer.zero_grad()
            loss_of(half(x), y).backward()
            optimizer.step()
            schedule.step()

    _, began = turns_of_a_loop(make, turn)
    assert [group.get("step") for group in began] == [None, 3, 6]
    assert [group["lr"] for group in began] == [1e-2] * 3
    assert not any("initial_lr" in group for group in began)


class Projecting(GroupAdam):
    """Its function goes by the weights themselves."""

    def __init__(self, params: Any) -> None:
        weights = list(params)
        super().__init__(weights)
        self.project = lambda: [weight.data.clamp_(-0.1, 0.1) for weight in weights]

    def step(self, closure: Any = None) -> None:
        super().step()
        self.project()


def test_a_turn_that_begins_moves_no_weights() -> None:
    half = seeded(DeviceHalf)
    before = weights(half)
    states = DeviceStates("relay")
    optimizer = Projecting(half.parameters())
    with (
        SplitEndpoint(shared_half(), cut_codec("float32"), states=states) as endpoint,
        connect(ticket_message(endpoint), optimizer=optimizer),
    ):
        assert same(weights(half), before)


class TensorCount(GroupAdam):
    def step(self, closure: Any = None) -> None:
        super().step()
        for group in self.param_groups:
            group["d"] = torch.tensor(float(group["step"]))


class Sharpness(torch.optim.Optimizer):
    """Wraps another one, of whose state it does not tell, as SAM does."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})
        self.base = torch.optim.SGD(self.param_groups, lr=0.1, momentum=0.9)

    def step(self, closure: Any = None) -> None:
        self.base.step()


@pytest.mark.parametrize("make", [TensorCount, Sharpness])
def test_an_optimizer_that_keeps_state_to_itself_is_refused_by_name(make: Any) -> None:
    optimizer = make(seeded(DeviceHalf).parameters())
    states = DeviceStates("relay")
    with SplitEndpoint(shared_half(), cut_codec("float32"), states=states) as endpoint:
        why = rf"{make.__name__} has state of which .* does not tell: .*='fresh'"
        with pytest.raises(TypeError, match=why):
            connect(ticket_message(endpoint), optimizer=optimizer)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("0.group.lr", torch.tensor(0.0), "'0.group.lr' is no"),
        ("0.group.params", torch.tensor(0.0), "'0.group.params' is no"),
        ("1.group.size", torch.tensor(1.0), "'1.group.size' is no"),
        ("0.group.size", torch.tensor(float("nan")), "no fit float"),
        ("0.group.size", torch.tensor(1j), "no fit float"),
        ("0.group.size", torch.ones(1, 1, 1, 1), "no fit float"),
        ("0.group.step", torch.tensor(1.5), "no fit int"),
        ("0.group.step", torch.tensor(True), "no fit int"),
        ("0.group.step", torch.tensor(-3), "no fit int"),
        ("0.group.step", torch.tensor(2**62), "no fit int"),
    ],
)
def test_only_counts_that_fit_are_taken(
    name: str, value: Tensor, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    optimizer = GroupAdam(seeded(DeviceHalf).parameters())
    before = deepcopy(optimizer.state_dict())
    start_from(optimizer, {name: value})
    assert why in caplog.text
    assert optimizer.state_dict() == before


def test_a_count_with_which_weights_run_away_is_left_aside(
    caplog: pytest.LogCaptureFixture,
) -> None:
    optimizer = GroupAdam(seeded(DeviceHalf).parameters())
    start_from(optimizer, {"0.group.size": torch.tensor(1e15)})
    assert "the first steps take the largest weight from" in caplog.text
    assert optimizer.param_groups[0]["size"] == 1.0


def test_an_optimizer_that_cannot_be_copied_is_refused_by_name() -> None:
    half = seeded(DeviceHalf)
    optimizer = bare_lookahead(half.parameters())
    server = shared_half()
    states = DeviceStates("relay")
    with SplitEndpoint(server, cut_codec("float32"), states=states) as endpoint:
        message = ticket_message(endpoint)
        why = r"optimizer BareLookahead: .* a copy does not work .*state='fresh'"
        with pytest.raises(TypeError, match=why):
            connect(message, optimizer=optimizer)
    half(DATA[0][0]).sum().backward()
    before = weights(half)
    optimizer.step()
    assert not same(weights(half), before)


def test_state_of_no_parameter_is_refused_by_name() -> None:
    """As `k` of MADGRAD is."""

    def make(parameters: Any) -> torch.optim.Optimizer:
        optimizer = SGD(parameters)
        optimizer.state["k"] = torch.zeros(1)
        return optimizer

    why = r"optimizer state 'k' is of no parameter: .*optimizer_state='fresh'"
    with pytest.raises(TypeError, match=why):
        turns_of_a_loop(make, lambda *_: None)


# -- in the server half ----------------------------------------------------------------

FEATURES = torch.rand(8, 4, 4, 4, generator=torch.Generator())
LABELS = torch.arange(8) % 4


def trainer(optimizer: Any, scheduler: Any = None) -> HalfTrainer:
    return HalfTrainer(
        seeded(ServerHalf), LOSS, optimizer, scheduler=scheduler, device="cpu"
    )


own = pytest.mark.parametrize("optimizer", [GroupAdam, lookahead, bare_lookahead])


@own
@pytest.mark.parametrize("steps_before", [0, 3])
def test_a_refused_step_leaves_no_trace(optimizer: Any, steps_before: int) -> None:
    broken = False

    def rate(step: int) -> float:
        if broken:
            raise RuntimeError("no rate")
        return 1.0

    schedule = partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=rate)
    disturbed, undisturbed = (trainer(optimizer, schedule) for _ in range(2))
    for half in (disturbed, undisturbed):
        for _ in range(steps_before):
            half.step(FEATURES, LABELS)
    # after the optimizer's step
    broken = True
    with pytest.raises(StepRefused, match="no rate"):
        disturbed.step(FEATURES, LABELS)
    broken = False
    for half in (disturbed, undisturbed):
        for _ in range(3):
            half.step(FEATURES, LABELS)
    assert same(weights(disturbed.model), weights(undisturbed.model))


@own
def test_a_resumed_half_trains_as_one_that_went_on(optimizer: Any) -> None:
    went_on, first, resumed = (trainer(optimizer) for _ in range(3))
    for half in (went_on, first):
        for _ in range(3):
            half.step(FEATURES, LABELS)
    resumed.load_state_dict(deepcopy(first.state_dict()))
    for half in (went_on, resumed):
        for _ in range(3):
            half.step(FEATURES, LABELS)
    assert same(weights(resumed.model), weights(went_on.model))
