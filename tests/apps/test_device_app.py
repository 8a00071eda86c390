"""One training loop, under a split strategy and under Flower's own, with no ``if``."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp.mod import arrays_size_mod
from flwr.serverapp.strategy import FedAvg, Strategy
from torch import Tensor, nn

from flwr_splitfc import (
    DeviceApp,
    JoinedModel,
    RoundRobin,
    RunFailed,
    SplitFC,
    SplitFedV2,
    SplitLearning,
    connect,
    defence_for,
    model_for,
    session_for,
    split_at,
)
from flwr_splitfc.exchange import Session
from tests.halves import DeviceHalf, ServerHalf, batches, same, seeded
from tests.local_grid import LocalGrid

CROSS_ENTROPY = nn.CrossEntropyLoss()
ADAM = partial(torch.optim.Adam, lr=1e-2)
BATCHES = batches(5)
BITS = ("uplink_bits_per_entry", "downlink_bits_per_entry")
VALIDATION = batches(1, rows=48, seed=1)[0][0]


def net() -> nn.Module:
    return nn.Sequential(DeviceHalf(), ServerHalf())


def joined() -> nn.Module:
    return JoinedModel(DeviceHalf(), ServerHalf())


def make_app(
    make_model: Callable[[], nn.Module],
    cut: int | None,
    pipelined: bool = False,
    validates: bool = False,
) -> DeviceApp:
    app = DeviceApp(mods=[arrays_size_mod])

    @app.train()
    def train(msg: Message, context: Context) -> Message:
        model = model_for(msg, make_model(), cut)
        optimizer = ADAM(model.parameters())
        with session_for(msg, context, CROSS_ENTROPY, optimizer=optimizer) as server:
            losses = (server.loss(model(x), y) for x, y in BATCHES)
            if pipelined:
                losses = server.pipelined(model, BATCHES)
            for loss in losses:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if validates:
                    with torch.no_grad():
                        server.predict(model(VALIDATION))
            metrics = MetricRecord({**server.metrics()})
        content = {"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}
        return Message(RecordDict(content), reply_to=msg)

    @app.evaluate()
    @torch.no_grad()
    def evaluate(msg: Message, context: Context) -> Message:
        model = model_for(msg, make_model(), cut).eval()
        right = 0
        with session_for(msg, context, CROSS_ENTROPY) as server:
            for x, y in BATCHES:
                right += int((server.predict(model(x)).argmax(1) == y).sum())
            rows = server.metrics()["num-examples"]
        metrics = MetricRecord({"eval_acc": right / rows, "num-examples": rows})
        return Message(RecordDict({"metrics": metrics}), reply_to=msg)

    return app


def in_turn() -> Strategy:
    return RoundRobin(min_available_nodes=1)


def alone() -> Strategy:
    options = dict.fromkeys(["train", "evaluate", "available"], 1)
    return FedAvg(**{f"min_{name}_nodes": least for name, least in options.items()})


def under_fedavg(pipelined: bool = False) -> tuple[dict[str, Tensor], Any]:
    grid = LocalGrid(make_app(net, 0, pipelined), 1)
    arrays = ArrayRecord(seeded(net).state_dict())
    result = alone().start(grid, arrays, 1)
    return result.arrays.to_torch_state_dict(), result


@pytest.mark.parametrize("pipelined", [False, True])
@pytest.mark.parametrize("strategy", [SplitLearning, SplitFedV2])
def test_the_loop_trains_the_same_weights_with_fedavg(
    strategy: type[SplitLearning], pipelined: bool
) -> None:
    device, server = split_at(seeded(net), 0)
    split = strategy(server, CROSS_ENTROPY, ADAM, devices=in_turn(), device="cpu")
    grid = LocalGrid(make_app(net, 0, pipelined), 1)
    result = split.start(grid, ArrayRecord(device.state_dict()), 1)
    weights = {**result.arrays.to_torch_state_dict(), **server.state_dict()}
    alone_weights, alone_result = under_fedavg(pipelined)
    assert same(weights, alone_weights)
    accuracies = [
        each.evaluate_metrics_clientapp[1]["eval_acc"]
        for each in (result, alone_result)
    ]
    assert accuracies[0] == accuracies[1]


@pytest.mark.parametrize("kind", [FedAvg, SplitLearning, SplitFC])
def test_validation_in_the_training_turn_leaves_weights_and_metrics(kind: Any) -> None:
    def run(validates: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
        told: dict[str, Any] = {}
        app = make_app(net, 0, validates=validates)

        def listening(msg: Message, context: Context) -> Message:
            reply = app(msg, context)
            if msg.metadata.message_type == "train":
                told.update(reply.content["metrics"])
            return reply

        strategy, model = alone(), seeded(net)
        if kind is not FedAvg:
            model, server = split_at(model, 0)
            strategy = kind(server, CROSS_ENTROPY, ADAM, devices=in_turn())
        grid = LocalGrid(listening, 1)
        result = strategy.start(grid, ArrayRecord(model.state_dict()), 1)
        metrics = {**told, **result.train_metrics_clientapp[1]}
        names = ("train_loss", "num-examples", "steps", *BITS)
        kept = {name: metrics.get(name) for name in names}
        return result.arrays.to_torch_state_dict(), kept

    weights, metrics = run(validates=True)
    wanted_weights, wanted = run(validates=False)
    assert same(weights, wanted_weights)
    assert metrics == wanted
    assert metrics["num-examples"] == 5 * 16


def test_names_and_coded_models_need_nothing_more() -> None:
    split = SplitFC(seeded(ServerHalf), CROSS_ENTROPY, ADAM, devices=in_turn())
    grid = LocalGrid(make_app(joined, None), 3)
    split.start(grid, ArrayRecord(seeded(DeviceHalf).state_dict()), 3)
    assert list(split.ledger.devices("train")) == ["0", "1", "2"]
    assert not any(row["failures"] for row in split.progress.rows)
    # the device half's arrays would take 160 bytes
    model_bytes = split.ledger.of(1, "train").downlink_bytes["model"]
    assert 0 < model_bytes < 160


def test_a_joined_model_under_fedavg() -> None:
    grid = LocalGrid(make_app(joined, None), 1)
    arrays = ArrayRecord(seeded(joined).state_dict())
    result = alone().start(grid, arrays, 1)
    assert result.arrays.keys() == arrays.keys()
    assert result.train_metrics_clientapp[1]["steps"] == 5


def test_a_model_without_a_cut_says_what_is_missing() -> None:
    split = SplitLearning(seeded(ServerHalf), CROSS_ENTROPY, ADAM, devices=in_turn())
    grid = LocalGrid(make_app(net, None), 1)
    with pytest.raises(RuntimeError, match="name the layer after which the model is"):
        split.start(grid, ArrayRecord(seeded(DeviceHalf).state_dict()), 1)


def test_sides_that_cut_at_different_layers_are_told() -> None:
    """The layer in between has no entries, so the arrays fit all the same."""

    def whole() -> nn.Module:
        return nn.Sequential(DeviceHalf(), nn.ReLU(), ServerHalf())

    device, server = split_at(seeded(whole), 1)
    split = SplitLearning(server, CROSS_ENTROPY, ADAM, devices=in_turn(), device="cpu")
    arrays = ArrayRecord(device.state_dict())
    with pytest.raises(RunFailed, match="ends after '0', and the next begins after '1"):
        split.start(LocalGrid(make_app(whole, 0), 1), arrays, 1)
    split.start(LocalGrid(make_app(whole, 1), 1), arrays, 1)


@pytest.mark.parametrize("kind", [FedAvg, SplitFedV2])
def test_a_turns_seed_is_of_the_run_the_device_and_the_round(kind: Any) -> None:
    """With a split strategy and without: the same turn has the same seed again."""

    def seeds(run_seed: int) -> list[int]:
        found: dict[tuple[int, int], int] = {}
        app = DeviceApp()

        @app.train()
        def train(msg: Message, context: Context) -> Message:
            device = context.node_config["partition-id"]
            model = model_for(msg, joined())
            with session_for(msg, context, CROSS_ENTROPY) as server:
                found[len(found) // 2, device] = server.seed
                for x, y in BATCHES:
                    server.loss(model(x), y).backward()
                metrics = MetricRecord({**server.metrics()})
            content = {"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}
            return Message(RecordDict(content), reply_to=msg)

        sampling: dict[str, Any] = {"fraction_evaluate": 0.0}
        if kind is FedAvg:
            strategy, model = FedAvg(**sampling), joined()
        else:
            sampling = {"devices": FedAvg(**sampling), "seed": run_seed}
            strategy = kind(ServerHalf(), CROSS_ENTROPY, ADAM, **sampling)
            model = DeviceHalf()
        grid = LocalGrid(app, 2, workers=0)
        for context in grid.contexts.values():
            context.run_config = {"seed": run_seed}
        strategy.start(grid, ArrayRecord(model.state_dict()), num_rounds=2)
        return [found[turn] for turn in sorted(found)]

    first = seeds(0)
    assert len(set(first)) == 4
    assert seeds(0) == first
    assert not set(seeds(1)) & set(first)


def test_a_function_that_returns_nothing_is_told() -> None:
    app = DeviceApp()

    @app.train()
    def train(msg: Message, context: Context) -> Any:
        """As one without its last line."""

    strategy = SplitLearning(ServerHalf(), CROSS_ENTROPY, ADAM, devices=in_turn())
    arrays = ArrayRecord(DeviceHalf().state_dict())
    message = "ValueError: the train function returned None, wanted a Message"
    with pytest.raises(RunFailed, match=message):
        strategy.start(LocalGrid(app, 1), arrays, num_rounds=1)


@pytest.mark.parametrize(
    ("names", "told"), [(["arrays", "control"], "'arrays', 'control'"), ([], "none")]
)
def test_a_message_without_one_model_names_its_records(
    names: list[str], told: str
) -> None:
    arrays = ArrayRecord(joined().state_dict())
    content = RecordDict(dict.fromkeys(names, arrays))
    message = Message(content, dst_node_id=1, message_type="train")
    with pytest.raises(ValueError, match=f"has the ArrayRecords {told}, and model_for"):
        model_for(message, joined())


@pytest.mark.parametrize("applied", [False, True])
@pytest.mark.parametrize("session", [partial(session_for, loss_fn=None), connect])
def test_a_loop_has_to_apply_the_defence_that_its_config_asks_for(
    applied: bool, session: Callable[..., Session]
) -> None:
    """Otherwise features would go up as they are, and results.json say they were noisy."""
    app = DeviceApp()
    lengths = []

    @app.train()
    def train(msg: Message, context: Context) -> Message:
        model = model_for(msg, net(), 0)
        defence = defence_for(context) if applied else None
        with session(msg, context, defence=defence) as server:
            for x, y in BATCHES:
                features = defence(x, model(x))
                lengths.append(features.flatten(1).norm(dim=1).max())
                server.loss(features, y).backward()
            metrics = MetricRecord({**server.metrics()})
        content = {"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}
        return Message(RecordDict(content), reply_to=msg)

    device, server = split_at(seeded(net), 0)
    grid = LocalGrid(app, 1)
    for context in grid.contexts.values():
        context.node_config["feature-clip-norm"] = 0.5
    split = SplitLearning(server, CROSS_ENTROPY, ADAM, devices=in_turn(), device="cpu")
    arrays = ArrayRecord(device.state_dict())
    if applied:
        split.start(grid, arrays, 1)
        assert max(lengths) < 0.501
    else:
        with pytest.raises(RunFailed, match=r"asks for FeatureDefence\(clip_norm=0.5"):
            split.start(grid, arrays, 1)
