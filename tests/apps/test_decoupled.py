"""The apps where device halves learn from an auxiliary head: every strategy, resumed, by messages."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import FedAvg
from torch import Tensor, nn

from flwr_splitfc import (
    AuxiliaryHead,
    DecoupledHalf,
    EndpointConfig,
    JoinedModel,
    RoundRobin,
    RunFailed,
    SplitClientApp,
    SplitFC,
    SplitFedV1,
    SplitLearning,
    SplitServerApp,
    ThroughputBudgets,
)
from tests.apps.server_runs import accuracy, joined, results_of
from tests.halves import CLASSES, DeviceHalf, ServerHalf, batches, same, seeded, weights
from tests.local_grid import LocalGrid

CROSS_ENTROPY = nn.CrossEntropyLoss()
ADAM = partial(torch.optim.Adam, lr=1e-2)
SGD = partial(torch.optim.SGD, lr=0.1)
HEAD = partial(AuxiliaryHead, (4, 4, 4), CLASSES)


def load_data(context: Any) -> Any:
    data = batches(5, rows=64, seed=context.node_config["partition-id"])
    return data, data


def client(optimizer: Any = ADAM, **options: Any) -> SplitClientApp:
    settings = {"auxiliary": HEAD, "loss_fn": CROSS_ENTROPY, **options}
    return SplitClientApp(DeviceHalf, load_data, optimizer, **settings)


def results(folder: Path, **config: Any) -> dict[str, Any]:
    """The results.json of a run of both apps."""
    server = SplitServerApp(
        DeviceHalf, ServerHalf, CROSS_ENTROPY, ADAM, auxiliary=HEAD, evaluate=accuracy
    )
    keys = {name.replace("_", "-"): value for name, value in config.items()}
    settings = {"decoupled": True, "num-devices": 3, "results-dir": str(folder), **keys}
    return results_of(server, client(), settings)


@pytest.mark.parametrize(
    ("strategy", "steps"),
    [("splitfc", 5), ("split-learning", 5), ("splitfed-v1", 15), ("splitfed-v2", 15)],
)
def test_each_split_strategy_trains_both_halves(
    strategy: str, steps: int, tmp_path: Path
) -> None:
    run = results(tmp_path, strategy=strategy, num_rounds=9, evaluate_on_devices=True)
    rounds = run["rounds"]
    assert [row["steps"] for row in rounds] == 9 * [steps]
    assert all(row["downlink_bits_per_entry"] == 0 for row in rounds)
    # four classes; 1.00 over ten seeds and two thread counts
    assert rounds[-1]["accuracy"] > 0.6
    assert rounds[-1]["device_accuracy"] > 0.6
    # the head is left behind
    JoinedModel(DeviceHalf(), ServerHalf()).load_state_dict(joined(tmp_path))
    device = torch.load(tmp_path / "device.pt", weights_only=True)
    DeviceHalf().load_state_dict(device)


def test_each_nth_mini_batch_of_a_turn_goes_up(tmp_path: Path) -> None:
    run = results(tmp_path, num_rounds=12, send_every=2, steps_per_turn=7)
    rounds = run["rounds"]
    assert [row["steps"] for row in rounds] == 12 * [4]
    # four classes; 1.00 over ten seeds and two thread counts
    assert rounds[-1]["accuracy"] > 0.6


def trained(
    strategy: Callable[..., SplitLearning] = SplitLearning,
    rounds: int = 4,
    num_devices: int = 3,
    optimizer: Any = ADAM,
    **options: Any,
) -> tuple[SplitLearning, Any]:
    """A run's strategy and its result."""
    made = strategy(
        seeded(ServerHalf),
        CROSS_ENTROPY,
        optimizer,
        decoupled=True,
        device="cpu",
        **options,
    )
    grid = LocalGrid(client(optimizer), num_devices, workers=0)
    arrays = ArrayRecord(decoupled_half().state_dict())
    return made, made.start(grid, arrays, rounds)


def decoupled_half() -> DecoupledHalf:
    return DecoupledHalf(seeded(DeviceHalf), seeded(HEAD))


def train_alone(
    half: DecoupledHalf,
    server_half: nn.Module,
    turns: list[list[tuple[Tensor, Tensor]]],
    optimizer: Callable[..., torch.optim.Optimizer],
    send_every: int = 1,
) -> None:
    """Train both halves in this process."""
    own, servers = optimizer(half.parameters()), optimizer(server_half.parameters())
    for number, (x, y) in [step for turn in turns for step in enumerate(turn)]:
        features = half(x)
        if number % send_every == 0:
            servers.zero_grad()
            CROSS_ENTROPY(server_half(features.detach()), y).backward()
            servers.step()
        own.zero_grad()
        CROSS_ENTROPY(half.auxiliary(features), y).backward()
        own.step()


@pytest.mark.parametrize("send_every", [1, 2, 9])
def test_one_device_is_a_loop_in_one_process(send_every: int) -> None:
    devices = RoundRobin(min_available_nodes=1, fraction_evaluate=0.0)
    made, result = trained(num_devices=1, devices=devices, send_every=send_every)
    half, server_half = decoupled_half(), seeded(ServerHalf)
    turns = 4 * [batches(5, rows=64)]
    train_alone(half, server_half, turns, ADAM, send_every)
    assert same(result.arrays.to_torch_state_dict(), weights(half))
    assert same(weights(made.server_model), weights(server_half))


def test_splitfed_v1_averages_both_halves_and_the_heads() -> None:
    everyone = FedAvg(min_train_nodes=3, min_available_nodes=3, fraction_evaluate=0.0)
    made, result = trained(SplitFedV1, rounds=1, optimizer=SGD, devices=everyone)
    halves = []
    for device in range(3):
        half, server_half = decoupled_half(), seeded(ServerHalf)
        train_alone(half, server_half, [batches(5, rows=64, seed=device)], SGD)
        halves.append((weights(half), weights(server_half)))
    mean_half, mean_server_half = map(mean, zip(*halves, strict=True))
    torch.testing.assert_close(result.arrays.to_torch_state_dict(), mean_half)
    torch.testing.assert_close(weights(made.server_model), mean_server_half)


def mean(entries: Any) -> dict[str, Tensor]:
    return {
        name: torch.stack([each[name] for each in entries]).mean(0)
        for name in entries[0]
    }


def test_devices_tell_the_loss_that_they_go_by() -> None:
    _, result = trained(rounds=12)
    first, last = (result.train_metrics_clientapp[number] for number in (1, 12))
    # at most 0.034 of the first over ten seeds and two thread counts
    assert 0 < last["auxiliary_loss"] < 0.5 * first["auxiliary_loss"]


def test_a_run_that_goes_on_ends_as_one_that_was_not_interrupted(
    tmp_path: Path,
) -> None:
    options = {"codec": "splitfc-rd", "optimizer_state": "relay", "send_every": 2}
    whole, wanted = trained(rounds=5, **options)
    trained(rounds=2, checkpoint=tmp_path, **options)
    resumed, result = trained(rounds=5, checkpoint=tmp_path, **options)
    assert same(
        result.arrays.to_torch_state_dict(), wanted.arrays.to_torch_state_dict()
    )
    assert same(weights(resumed.server_model), weights(whole.server_model))


@pytest.mark.parametrize("send_every", [1, 2, 3])
def test_messages_give_the_run_that_streams_give(send_every: int) -> None:
    by_stream, wanted = trained(send_every=send_every)
    by_message, result = trained(
        send_every=send_every, endpoint=EndpointConfig(transport="messages")
    )
    assert by_message.pipeline_depth == 1 < by_stream.pipeline_depth
    assert by_message.ledger.digest() == by_stream.ledger.digest()
    assert same(
        result.arrays.to_torch_state_dict(), wanted.arrays.to_torch_state_dict()
    )
    assert same(weights(by_message.server_model), weights(by_stream.server_model))


def test_the_joined_model_leaves_the_head_out(tmp_path: Path) -> None:
    made, result = trained(rounds=1)
    pictures, _ = batches(1)[0]
    outputs = [
        made.joined_model(half, result.arrays).eval()(pictures)
        for half in (DeviceHalf(), decoupled_half())
    ]
    assert torch.equal(*outputs)
    alone = JoinedModel(DeviceHalf(), ServerHalf())
    alone.load_state_dict(made.joined_state_dict(result.arrays))
    assert torch.equal(alone.eval()(pictures), outputs[0])


def test_what_makes_no_sense_is_refused_at_once() -> None:
    make = partial(SplitFC, ServerHalf(), optimizer=ADAM, decoupled=True)
    with pytest.raises(ValueError, match="last layers are on devices"):
        make(loss_fn=None)
    with pytest.raises(ValueError, match="ThroughputBudgets"):
        make(loss_fn=CROSS_ENTROPY, budgets=ThroughputBudgets(0.1))
    with pytest.raises(ValueError, match="send_every is 0"):
        make(loss_fn=CROSS_ENTROPY, send_every=0)
    with pytest.raises(ValueError, match="needs decoupled=True"):
        make(loss_fn=CROSS_ENTROPY, send_every=2, decoupled=False)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"strategy": "fedavg"}, "decoupled is true, and strategy is 'fedavg'"),
        ({"pipeline_depth": 2, "split_transport": "messages"}, "one at a time"),
        ({"decoupled": False, "send_every": 2}, "send-every is 2, and decoupled is"),
        ({"send_every": 0}, "send-every is 0"),
    ],
)
def test_a_run_config_that_makes_no_sense_is_refused(
    config: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=reason):
        results(tmp_path, **config)


def test_apps_without_a_head_say_what_is_missing(tmp_path: Path) -> None:
    server = SplitServerApp(DeviceHalf, ServerHalf, CROSS_ENTROPY, ADAM)
    config = {"decoupled": True, "num-devices": 3, "results-dir": str(tmp_path)}
    with pytest.raises(ValueError, match="no auxiliary head"):
        results_of(server, client(), config)
    server.auxiliary = HEAD
    with pytest.raises(RunFailed, match="an auxiliary head and a loss_fn"):
        results_of(server, client(auxiliary=None), config)


def test_last_layers_on_devices_are_refused(tmp_path: Path) -> None:
    tail = partial(nn.Linear, 16, CLASSES)
    server = SplitServerApp(
        DeviceHalf, ServerHalf, CROSS_ENTROPY, ADAM, tail=tail, auxiliary=HEAD
    )
    config = {"decoupled": True, "num-devices": 3, "results-dir": str(tmp_path)}
    with pytest.raises(ValueError, match="last layers are on devices"):
        results_of(server, client(tail=tail), config)


@pytest.mark.parametrize(
    ("shape", "weights_of_one"),
    [((7,), 7), ((7, 3), 21), ((7, 5, 1), 28), ((7, 8, 4, 2), 224)],
)
def test_a_head_takes_features_of_any_number_of_dimensions(
    shape: tuple[int, ...], weights_of_one: int
) -> None:
    head = AuxiliaryHead(shape, 3)
    assert head(torch.rand(2, *shape)).shape == (2, 3)
    assert sum(weight.numel() for weight in head.parameters()) == 3 * (
        weights_of_one + 1
    )


def test_a_head_takes_no_more_than_three_dimensions_of_space() -> None:
    with pytest.raises(ValueError, match="4 dimensions of space"):
        AuxiliaryHead((1, 2, 2, 2, 2), 3)
