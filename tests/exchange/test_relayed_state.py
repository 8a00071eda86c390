"""Optimizer state that a device leaves is checked before the next device gets it."""

import re
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from torch import Tensor, nn

from flwr_splitfc import (
    RoundRobin,
    SplitClientApp,
    SplitLearning,
    connect,
    cut_codec,
    trained_only,
)
from flwr_splitfc.exchange import SplitEndpoint, has_ticket
from flwr_splitfc.exchange.device.optimizer_state import optimizer_tensors, start_from
from flwr_splitfc.exchange.protocol.tensors import pack_tensor, unpack_tensor
from flwr_splitfc.exchange.server.turn.device_states import DeviceStates, Kept
from tests.exchange.server_halves import shared_half
from tests.halves import DeviceHalf, ServerHalf, batches, seeded, weights
from tests.local_grid import LocalGrid, ticket_message

ADAM = partial(torch.optim.Adam, lr=1e-2)
WEIGHT = seeded(DeviceHalf).layers[0].weight  # the device half's first parameter
# it trusts the size of whatever state it is given
FUSED = partial(torch.optim.Adam, lr=1e-2, fused=True)


def honest(optimizer: Any = ADAM) -> SplitClientApp:
    return SplitClientApp(
        DeviceHalf, lambda context: (batches(3), batches(1)), optimizer
    )


def liar(state: dict[Any, dict[str, Tensor]]) -> type[torch.optim.SGD]:
    """An optimizer that says what it is told to say of its state."""

    class Liar(torch.optim.SGD):
        def state_dict(self) -> dict[str, Any]:
            return {**super().state_dict(), "state": state}

    return Liar


def lying_in_round_two(
    state: dict[Any, dict[str, Tensor]], others: SplitClientApp | None = None
) -> Any:
    """An app whose device 1 trains in the second round, and leaves `state`."""
    others = others or honest()

    def app(message: Message, context: Context) -> Message:
        is_liar = context.node_config["partition-id"] == 1
        if not (is_liar and has_ticket(message)):
            return others(message, context)
        half = seeded(DeviceHalf)
        half.load_state_dict(message.content["arrays"].to_torch_state_dict())
        optimizer = liar(state)(half.parameters())
        with connect(message, context, optimizer=optimizer) as session:
            x, y = batches(1)[0]
            session.loss(half(x), y).backward()
            metrics = session.metrics()
        content = {
            "arrays": ArrayRecord(half.state_dict()),
            "metrics": MetricRecord(metrics),
        }
        return Message(RecordDict(content), reply_to=message)

    return app


def run(app: Any, rounds: int = 4, **options: Any) -> SplitLearning:
    strategy = SplitLearning(
        seeded(ServerHalf),
        nn.CrossEntropyLoss(),
        ADAM,
        device="cpu",
        devices=RoundRobin(min_available_nodes=3, fraction_evaluate=0.0),
        **options,
    )
    arrays = ArrayRecord(seeded(DeviceHalf).state_dict())
    strategy.start(LocalGrid(app, 3), arrays, rounds)
    return strategy


def like_weight(value: float) -> Tensor:
    return torch.full_like(WEIGHT.detach(), value)


LIES = [
    ({0: {"exp_avg": like_weight(float("nan"))}}, "'0.exp_avg' is not finite"),
    ({0: {"exp_avg": like_weight(1e30).double() * 1e30}}, "is not finite"),
    (
        {0: {"exp_avg": torch.complex(like_weight(0.0), like_weight(float("inf")))}},
        "'0.exp_avg' is not finite",
    ),
    ({0: {"step": torch.tensor(float("inf"))}}, "'0.step' is not finite"),
    ({99: {"exp_avg": like_weight(0.0)}}, "the device half has 2 arrays"),
    ({"-1": {"exp_avg": like_weight(0.0)}}, "no name of optimizer state"),
    ({"nobody": {"exp_avg": like_weight(0.0)}}, "no name of optimizer state"),
    ({"9" * 5000: {"exp_avg": like_weight(0.0)}}, "of 5008 characters"),
    ({0: {"\x1b[2J\n": like_weight(0.0)}}, "no name of optimizer state"),
    (
        {0: {"exp_avg": torch.zeros(7)}},
        r"has shape \(7,\), .* set optimizer_state='fresh' in the strategy",
    ),
    (
        {0: {"a": like_weight(0), "b": torch.zeros(4)}},
        r"has shape \(4, 1, 3, 3\) and \(4,\)|has shape \(4,\) and",
    ),
    (
        {0: {"exp_avg": like_weight(0)}, 1: {"exp_avg": like_weight(0)}},
        "2 parameters of shape",
    ),
    ({0: {f"k{i}": like_weight(0) for i in range(17)}}, "more than 16 tensors"),
]


@pytest.mark.parametrize(("state", "why"), LIES)
def test_state_that_no_optimizer_leaves_fails_its_device_alone(
    state: dict[Any, dict[str, Tensor]], why: str
) -> None:
    strategy = run(lying_in_round_two(state))
    failures = [strategy.ledger.failures(number) for number in (1, 2, 3, 4)]
    assert failures[1].keys() == {"1"}
    assert failures[0] == failures[2] == failures[3] == {}
    assert re.search(why, failures[1]["1"])
    for weight in weights(strategy.server_model).values():
        assert weight.isfinite().all()


def adam_state(step: float, moments: float) -> dict[str, Tensor]:
    return {
        "step": torch.tensor(step),
        "exp_avg": like_weight(moments),
        "exp_avg_sq": like_weight(moments),
    }


ONE_NUMBER = {**adam_state(step=9.0, moments=1.0), "exp_avg": torch.tensor(1.0)}


@pytest.mark.parametrize("optimizer", [ADAM, FUSED], ids=["adam", "fused"])
@pytest.mark.parametrize(
    "state",
    [
        {0: {"exp_avgg": like_weight(0.0)}},
        {0: adam_state(step=-1.0, moments=1.0)},
        {0: adam_state(step=9.0, moments=-1.0)},
        {0: {"exp_avg": torch.zeros(4)}, 1: {"exp_avg": like_weight(0.0)}},
        {0: ONE_NUMBER},
        {0: {**adam_state(step=9.0, moments=1.0), "more": like_weight(0.0)}},
    ],
    ids=[
        "unknown-key",
        "negative-step",
        "negative-square",
        "swapped",
        "one-number",
        "one-more",
    ],
)
def test_state_that_does_not_work_is_left_aside(
    state: dict[Any, dict[str, Tensor]],
    optimizer: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The server does not know the optimizer; the next device does, and starts afresh."""
    strategy = run(lying_in_round_two(state, honest(optimizer)))
    assert [strategy.ledger.failures(number) for number in (1, 2, 3, 4)] == 4 * [{}]
    # the liar's own has no use for Adam's, either
    assert caplog.text.count("starts afresh") == 2
    assert caplog.text.count("or set optimizer_state='fresh' in the strategy") == 2


def test_a_count_of_steps_that_would_overflow_is_left_aside(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Adam's correction of its means is by a division, by zero then."""
    half = seeded(DeviceHalf)
    state = {**adam_state(step=9.0, moments=1.0), "step": torch.tensor(9).byte()}
    start_from(ADAM(half.parameters()), {f"0.{key}": state[key] for key in state})
    assert "'0.step' is torch.uint8" in caplog.text


COUNTING = [
    partial(torch.optim.Adamax, lr=1e-2),
    partial(torch.optim.RAdam, lr=1e-2),
    partial(torch.optim.ASGD, lr=1e-2, lambd=0.1),
    partial(torch.optim.NAdam, lr=1e-2),
]


@pytest.mark.parametrize("make", COUNTING, ids=lambda make: make.func.__name__)
@pytest.mark.parametrize(
    ("count", "works"), [(-4.0, False), (-1003.0, False), (4.0, True)]
)
def test_a_negative_count_of_steps_is_left_aside(
    make: Any, count: float, works: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Two steps on it work, but one of the next divides by zero."""
    half = seeded(DeviceHalf)
    before = make(half.parameters())
    for weight in half.parameters():
        weight.grad = torch.ones_like(weight)
    before.step()
    left = optimizer_tensors(before)
    left["0.step"] = torch.tensor(count)
    after = make(half.parameters())
    start_from(after, left)
    assert bool(after.state) == works
    assert ("optimizer state '0.step' is -" in caplog.text) == (not works)


def test_integers_in_place_of_complex_state_are_left_aside(
    caplog: pytest.LogCaptureFixture,
) -> None:
    wave = nn.Parameter(torch.ones(4, dtype=torch.complex64))
    state = {
        "0.step": torch.tensor(9.0),
        "0.exp_avg": torch.ones(4).long(),
        "0.exp_avg_sq": wave.detach(),
    }
    start_from(ADAM([wave]), state)
    assert "'0.exp_avg' is torch.int64" in caplog.text


def test_nor_does_it_work_with_weights_that_are_not_finite(
    caplog: pytest.LogCaptureFixture,
) -> None:
    half = seeded(DeviceHalf)
    for weight in half.parameters():
        nn.init.constant_(weight, float("nan"))
    state = {f"0.{key}": value for key, value in ONE_NUMBER.items()}
    start_from(FUSED(half.parameters()), state)
    assert "'0.exp_avg' has shape ()" in caplog.text


RUNS_AWAY = {
    "momentum": (
        partial(torch.optim.SGD, lr=0.05, momentum=0.9),
        {0: {"momentum_buffer": like_weight(1e22)}},
    ),
    "less-momentum": (
        partial(torch.optim.SGD, lr=0.05, momentum=0.9),
        {0: {"momentum_buffer": like_weight(1e12)}},
    ),
    "adam": (
        ADAM,
        {0: {**adam_state(step=5.0, moments=0.0), "exp_avg": like_weight(1e22)}},
    ),
    "step-size": (
        torch.optim.Adadelta,
        {
            0: {
                "step": torch.tensor(5.0),
                "acc_delta": like_weight(1e37),
                "square_avg": like_weight(0.0),
            }
        },
    ),
}


@pytest.mark.parametrize("name", RUNS_AWAY)
def test_state_with_which_weights_run_away_is_left_aside(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Finite as they are, such weights would fail each device that gets the state."""
    optimizer, state = RUNS_AWAY[name]
    strategy = run(lying_in_round_two(state, honest(optimizer)))
    assert [strategy.ledger.failures(number) for number in (1, 2, 3, 4)] == 4 * [{}]
    assert "the first steps take the largest weight from" in caplog.text


@pytest.mark.parametrize("momentum", [1.0, 1e4])
def test_state_with_which_weights_take_a_large_step_is_not(
    momentum: float, caplog: pytest.LogCaptureFixture
) -> None:
    half = seeded(DeviceHalf)
    optimizer = torch.optim.SGD(half.parameters(), lr=10.0, momentum=0.9)
    state = {"0.momentum_buffer": like_weight(momentum)}
    start_from(optimizer, state)
    assert not caplog.records
    (kept,) = optimizer.state[half.layers[0].weight].values()
    assert torch.equal(kept, state["0.momentum_buffer"])


def test_a_resumed_run_has_nothing_of_it(tmp_path: Any) -> None:
    app = lying_in_round_two(LIES[0][0])
    run(app, rounds=2, checkpoint=tmp_path)
    resumed = run(app, rounds=4, checkpoint=tmp_path)
    assert [resumed.ledger.failures(number) for number in (3, 4)] == [{}, {}]
    assert resumed.ledger.of(4, "train").steps == 3


def replying(change: Any, device: int = 1) -> Any:
    """An app of which a device trains as the others, and changes its replies."""
    others = honest()

    def app(message: Message, context: Context) -> Message:
        reply = others(message, context)
        trained = has_ticket(message) and message.metadata.message_type == "train"
        if trained and context.node_config["partition-id"] == device:
            change(reply)
        return reply

    return app


def fill(value: float) -> Any:
    def change(reply: Message) -> None:
        arrays = reply.content["arrays"].to_torch_state_dict()
        arrays["layers.0.bias"].fill_(value)
        reply.content["arrays"] = ArrayRecord(arrays)

    return change


def without_weight(reply: Message) -> None:
    del reply.content["metrics"]["num-examples"]


def steps_behind(strategy: SplitLearning) -> float | None:
    """Return the step count in the state that the next device would start from."""
    for tensor in strategy._run.device_states.of("0").optimizer:
        if tensor.name == "0.step":
            return float(unpack_tensor(tensor))
    return None


def die(reply: Message) -> None:
    raise RuntimeError("the device is out of memory")


FAILURES = [fill(1e22), without_weight, die]
LARGE = {0: adam_state(step=5.0, moments=1e22)}


@pytest.mark.parametrize("change", FAILURES)
def test_large_state_after_which_a_device_fails_is_dropped(
    change: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Who has left it may be honest ever since: the devices after it must not all fail."""
    app = lying_in_round_two(LARGE, replying(change, device=2))
    assert steps_behind(run(app, rounds=3)) is None
    assert "Device 2 failed after it had started from" in caplog.text
    assert steps_behind(run(app, rounds=4)) == 3


@pytest.mark.parametrize("change", FAILURES)
def test_usual_state_outlives_the_devices_that_fail(change: Any) -> None:
    """Or one device that fails would cost all others their momentum."""
    strategy = run(replying(change), rounds=4)
    assert strategy.ledger.failures(2).keys() == {"1"}
    assert steps_behind(strategy) == 9


class FailsLater(torch.optim.Adam):
    """Has a count at which a step fails, as where torch's own divide by zero."""

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        if any(state["step"] == 103 for state in self.state.values()):
            raise ZeroDivisionError("at step 103")
        return loss


def test_state_after_which_two_devices_fail_is_dropped(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What passes a trial of two steps may fail the third, on all that start from it."""
    state = {0: adam_state(step=100.0, moments=1.0)}
    app = lying_in_round_two(state, honest(partial(FailsLater, lr=1e-2)))
    strategy = run(app, rounds=3)
    assert strategy.ledger.failures(3).keys() == {"2"}
    assert steps_behind(strategy) == 100
    assert "is dropped" not in caplog.text
    strategy = run(app, rounds=4)
    assert strategy.ledger.failures(4).keys() == {"0"}
    assert steps_behind(strategy) is None
    assert "Device 0 failed after it had started from" in caplog.text


def test_failures_that_are_not_in_a_row_cost_no_momentum() -> None:
    states = DeviceStates("relay", [tuple(WEIGHT.shape)])
    usual = Kept([pack_tensor("0.exp_avg", like_weight(1.0))])
    for device in "0123":
        states.keep(device, replace(usual, optimizer=[*usual.optimizer]))
        assert not states.note_failure(states.of(device), True)
        # of devices that are not there it says nothing
        assert not any(states.note_failure(states.of("5"), False) for _ in range(9))
    assert states.note_failure(states.of("4"), True)
    # of nothing there is nothing to drop
    assert not states.note_failure(states.of("4"), True)
    assert not states.note_failure(states.of("4"), True)


def test_what_another_device_has_left_since_is_not_dropped() -> None:
    states = DeviceStates("relay", [tuple(WEIGHT.shape)])
    large, usual = (
        Kept([pack_tensor("0.exp_avg", like_weight(value))]) for value in (1e22, 1.0)
    )
    states.keep("1", large)
    started_from = states.of("2")
    states.keep("0", usual)
    assert not states.note_failure(started_from, True)
    assert states.of("2") == usual
    states.keep("1", large)
    assert states.note_failure(states.of("2"), False)
    assert states.of("2") == Kept()


def test_state_of_adapters_is_relayed_past_what_is_frozen() -> None:
    """Numbers are those of the parameters that train, which are the half's arrays."""

    def half() -> nn.Module:
        model = seeded(DeviceHalf)
        convolution = model.layers[0]
        convolution.weight.requires_grad_(False)
        return trained_only(model)

    app = SplitClientApp(half, lambda context: (batches(3), batches(1)), ADAM)
    strategy = SplitLearning(
        seeded(ServerHalf), nn.CrossEntropyLoss(), ADAM, device="cpu"
    )
    arrays = ArrayRecord(half().state_dict())
    assert list(arrays) == ["layers.0.bias"]
    result = strategy.start(LocalGrid(app, 2, workers=0), arrays, 3)
    assert [row["failures"] for row in strategy.progress.rows] == [{}, {}, {}]
    left = strategy._run.device_states.of("0").optimizer
    names = [tensor.name for tensor in left]
    assert names == ["0.step", "0.exp_avg", "0.exp_avg_sq"]
    assert list(result.arrays) == ["layers.0.bias"]


def test_state_is_of_its_weights_where_a_loop_freezes_them_in_turns() -> None:
    """As one with two players does: when a turn ends, the first of them is frozen."""

    def half() -> nn.Module:
        return seeded(lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))

    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(8, 4, generator=draw), torch.arange(8) % 4

    def turn(model: nn.Module, optimizer: Any, loss_of: Any) -> None:
        for number in range(4):
            for player, layer in enumerate(model):
                layer.requires_grad_(number % 2 == player)
            optimizer.zero_grad()
            loss_of(model(x), y).backward()
            optimizer.step()
        model.requires_grad_(True)

    server_half = shared_half(
        seeded(lambda: nn.Linear(4, 4)), optimizer=partial(torch.optim.SGD, lr=0.0)
    )
    trained, alone = half(), half()
    of_alone = ADAM(alone.parameters())
    states = DeviceStates("relay")
    with SplitEndpoint(server_half, cut_codec("float32"), states=states) as endpoint:
        for device in ("0", "1", "2"):
            optimizer = ADAM(trained.parameters())
            message = ticket_message(endpoint, device=device)
            with connect(message, optimizer=optimizer) as server:
                turn(trained, optimizer, server.loss)
                # what trains is told when the turn begins
                trained[0].requires_grad_(False)
            endpoint.replied(server.ticket.token)
            trained.requires_grad_(True)
    server = server_half.half.model
    for _ in range(3):
        turn(alone, of_alone, lambda f, y: nn.functional.cross_entropy(server(f), y))
    for name, value in weights(alone).items():
        torch.testing.assert_close(weights(trained)[name], value)
