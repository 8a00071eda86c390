"""The claims of docs/equivalence.md."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp.strategy import FedAdam, FedAvg, FedProx, Strategy
from torch import Tensor, nn

from flwr_splitfc import (
    HeadAndTail,
    JoinedModel,
    RoundRobin,
    RunFailed,
    SplitClientApp,
    SplitFC,
    SplitFedV1,
    SplitFedV2,
    SplitLearning,
    answer_device_query,
    connect,
    cut_codec,
)
from flwr_splitfc.exchange import HalfTrainer
from flwr_splitfc.exchange.protocol.seeds import derive_seed
from tests.halves import DeviceHalf, ServerHalf, batches, same, seeded, weights
from tests.local_grid import LocalGrid

CROSS_ENTROPY = nn.CrossEntropyLoss()
PLAIN_SGD = partial(torch.optim.SGD, lr=0.1)
MOMENTUM = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
ADAM = partial(torch.optim.Adam, lr=1e-2)


class NormDeviceHalf(nn.Module):
    """Normalises."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class DropDeviceHalf(DeviceHalf):
    """Drops half of its features."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(self.layers(x), 0.5, self.training)


def norm_server_half() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4)
    )


def drop_server_half() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 4)
    )


def rows_of(device: int) -> int:
    """Devices differ in size."""
    return 8 + 8 * device


def one_full_batch(context: Any) -> tuple[list[Any], list[Any]]:
    device = context.node_config["partition-id"]
    data = batches(1, rows=rows_of(device), seed=device)
    return data, data


def four_batches(context: Any) -> tuple[list[Any], list[Any]]:
    data = batches(4, seed=context.node_config["partition-id"])
    return data, data


def app(
    load_data: Callable[..., Any],
    optimizer: Any,
    device: Callable[[], nn.Module] = DeviceHalf,
    server: Callable[[], nn.Module] = ServerHalf,
) -> SplitClientApp:
    return SplitClientApp(
        device, load_data, optimizer, server_model=server, loss_fn=CROSS_ENTROPY
    )


def all_of(
    count: int, strategy: Callable[..., Strategy] = FedAvg, **options: Any
) -> Strategy:
    sizes = {
        "min_train_nodes": count,
        "min_evaluate_nodes": count,
        "min_available_nodes": count,
    }
    return strategy(fraction_evaluate=0.0, **sizes, **options)


def fedavg(
    count: int,
    rounds: int,
    load_data: Callable[..., Any],
    optimizer: Any,
    strategy: Callable[..., Strategy] = FedAvg,
    server: Callable[[], nn.Module] = ServerHalf,
    device: Callable[[], nn.Module] = DeviceHalf,
) -> dict[str, Tensor]:
    """The joined model after Flower's own strategy."""
    joined = JoinedModel(seeded(device), seeded(server))
    grid = LocalGrid(app(load_data, optimizer, device, server), count)
    result = all_of(count, strategy).start(
        grid, ArrayRecord(joined.state_dict()), rounds
    )
    return result.arrays.to_torch_state_dict()


def split(
    strategy: type[SplitLearning],
    count: int,
    rounds: int,
    load_data: Callable[..., Any],
    optimizer: Any,
    server: Callable[[], nn.Module] = ServerHalf,
    device: Callable[[], nn.Module] = DeviceHalf,
    steps: int | None = None,
    **options: Any,
) -> tuple[dict[str, Tensor], SplitLearning]:
    options.setdefault("devices", all_of(count))
    made = strategy(seeded(server), CROSS_ENTROPY, optimizer, device="cpu", **options)
    config = ConfigRecord({} if steps is None else {"steps-per-turn": steps})
    grid = LocalGrid(app(load_data, optimizer, device, server), count)
    result = made.start(
        grid, ArrayRecord(seeded(device).state_dict()), rounds, train_config=config
    )
    return made.joined_state_dict(result.arrays), made


def unsplit(
    data: Iterable[tuple[Tensor, Tensor]],
    optimizer: Any,
    server: Callable[[], nn.Module] = ServerHalf,
    device: Callable[[], nn.Module] = DeviceHalf,
    seed: int | None = None,
) -> dict[str, Tensor]:
    """Plain PyTorch training of the joined model."""
    joined = JoinedModel(seeded(device), seeded(server)).train()
    whole = optimizer(joined.parameters())
    for number, (x, y) in enumerate(data, start=1):
        if seed is not None:
            torch.manual_seed(derive_seed(seed, "step", number))
        whole.zero_grad()
        CROSS_ENTROPY(joined(x), y).backward()
        whole.step()
    return weights(joined)


def farthest(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


# 1. SplitFed V1 is FedAvg on the joined model


@pytest.mark.parametrize("load_data", [one_full_batch, four_batches])
@pytest.mark.parametrize("optimizer", [PLAIN_SGD, MOMENTUM])
def test_splitfed_v1_is_fedavg(load_data: Callable[..., Any], optimizer: Any) -> None:
    split_weights, _ = split(SplitFedV1, 3, 4, load_data, optimizer)
    assert farthest(split_weights, fedavg(3, 4, load_data, optimizer)) < 1e-6


def test_splitfed_v1_is_fedavg_with_adam_in_the_first_round_and_close_later() -> None:
    for rounds, bound in ((1, 1e-7), (4, 1e-5)):
        split_weights, _ = split(SplitFedV1, 3, rounds, one_full_batch, ADAM)
        assert farthest(split_weights, fedavg(3, rounds, one_full_batch, ADAM)) < bound


def test_splitfed_v1_with_kept_optimizer_state_is_not_fedavg() -> None:
    split_weights, _ = split(
        SplitFedV1, 3, 4, one_full_batch, ADAM, optimizer_state="per-device"
    )
    assert farthest(split_weights, fedavg(3, 4, one_full_batch, ADAM)) > 1e-3


def test_splitfed_v1_averages_normalisation_statistics_as_fedavg_does() -> None:
    halves = {"server": norm_server_half, "device": NormDeviceHalf}
    split_weights, _ = split(SplitFedV1, 3, 3, one_full_batch, PLAIN_SGD, **halves)
    joined_weights = fedavg(3, 3, one_full_batch, PLAIN_SGD, **halves)
    for name in [
        name for name in joined_weights if name.endswith("num_batches_tracked")
    ]:
        # FedAvg averages counts in floats, and a device that loads 2.999... has 2. No
        # update depends on it.
        del split_weights[name], joined_weights[name]
    assert farthest(split_weights, joined_weights) < 1e-6


def test_splitfed_v1_leaves_out_devices_that_fail() -> None:
    working = app(one_full_batch, PLAIN_SGD)

    def sometimes(message: Message, context: Any) -> Message:
        reply = working(message, context)
        if (
            message.metadata.message_type == "train"
            and context.node_config["partition-id"] == 2
        ):
            raise OSError("the reply is lost")
        return reply

    made = SplitFedV1(
        seeded(ServerHalf), CROSS_ENTROPY, PLAIN_SGD, device="cpu", devices=all_of(3)
    )
    result = made.start(
        LocalGrid(sometimes, 3), ArrayRecord(seeded(DeviceHalf).state_dict()), 3
    )
    assert result.train_metrics_clientapp[1]["sessions"] == 3
    assert (
        farthest(
            made.joined_state_dict(result.arrays),
            fedavg(2, 3, one_full_batch, PLAIN_SGD),
        )
        < 2e-6
    )


def test_splitfed_v1_keeps_the_server_half_when_all_devices_fail() -> None:
    def broken(message: Message, context: Any) -> Message:
        raise OSError("no device works")

    made = SplitFedV1(
        seeded(ServerHalf), CROSS_ENTROPY, PLAIN_SGD, device="cpu", devices=all_of(2)
    )
    arrays = ArrayRecord(seeded(DeviceHalf).state_dict())
    with pytest.raises(RunFailed, match="no device works"):
        made.start(LocalGrid(broken, 2), arrays, 2)
    assert same(weights(made.server_model), weights(seeded(ServerHalf)))


# 2. One device: every variant is unsplit training


@pytest.mark.parametrize("strategy", [SplitLearning, SplitFedV1, SplitFedV2])
@pytest.mark.parametrize("optimizer", [PLAIN_SGD, MOMENTUM, ADAM])
def test_one_device_is_unsplit_training(
    strategy: type[SplitLearning], optimizer: Any
) -> None:
    split_weights, _ = split(strategy, 1, 1, four_batches, optimizer, steps=20)
    assert same(split_weights, unsplit(batches(4) * 5, optimizer))


@pytest.mark.parametrize("strategy", [SplitLearning, SplitFedV2])
def test_one_device_over_rounds_is_unsplit_training_if_its_optimizer_state_is_kept(
    strategy: type[SplitLearning],
) -> None:
    split_weights, _ = split(
        strategy, 1, 5, four_batches, ADAM, optimizer_state="per-device"
    )
    assert same(split_weights, unsplit(batches(4) * 5, ADAM))


class InThisOrder(RoundRobin):
    """Devices by a list of their partitions."""

    def __init__(self, partitions: list[int], **options: Any) -> None:
        super().__init__(**options)
        self.partitions = partitions

    def configure_train(self, server_round: int, *args: Any) -> Iterable[Message]:
        return super().configure_train(self.partitions[server_round - 1] + 1, *args)


def test_splitfed_v2_with_one_device_at_a_time_is_split_learning() -> None:
    sampled = FedAvg(
        fraction_train=0.1,
        fraction_evaluate=0.0,
        min_train_nodes=1,
        min_available_nodes=3,
    )
    v2 = SplitFedV2(
        seeded(ServerHalf),
        CROSS_ENTROPY,
        ADAM,
        device="cpu",
        devices=sampled,
        optimizer_state="relay",
    )
    grid = LocalGrid(app(four_batches, ADAM), 3)
    result = v2.start(grid, ArrayRecord(seeded(DeviceHalf).state_dict()), 6)
    assert len(grid.trained) == 6

    in_turn = InThisOrder(grid.trained, min_available_nodes=3, fraction_evaluate=0.0)
    split_weights, _ = split(SplitLearning, 3, 6, four_batches, ADAM, devices=in_turn)
    assert same(v2.joined_state_dict(result.arrays), split_weights)


# 3. The order of server updates


def test_a_replay_of_the_recorded_order_gives_the_same_weights() -> None:
    """Three devices at once, two rounds, dropout in the server half; then a plain loop in this thread."""
    blank = DeviceHalf()

    def train(message: Message, context: Any) -> Message:
        """Draws nothing at random: here, unlike in a run, devices share the server's process and its generator."""
        if message.metadata.message_type != "train":
            return answer_device_query(message, context)
        model = copy.deepcopy(blank)
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        optimizer = MOMENTUM(model.parameters())
        with connect(message) as server:
            for x, y in batches(4, seed=context.node_config["partition-id"]):
                optimizer.zero_grad()
                server.loss(model(x), y).backward()
                optimizer.step()
        return Message(reply_of(model, rows=64).content, reply_to=message)

    made = SplitFedV2(
        seeded(drop_server_half),
        CROSS_ENTROPY,
        MOMENTUM,
        device="cpu",
        devices=all_of(3),
        record_updates=True,
    )
    result = made.start(
        LocalGrid(train, 3, workers=3), ArrayRecord(seeded(DeviceHalf).state_dict()), 2
    )
    split_weights = made.joined_state_dict(result.arrays)
    assert len(made.updates) == 2 * 3 * 4

    half = HalfTrainer(seeded(drop_server_half), CROSS_ENTROPY, MOMENTUM, device="cpu")
    arrays = ArrayRecord(seeded(DeviceHalf).state_dict())
    for server_round in (1, 2):
        devices = {}
        for name in "012":
            model = DeviceHalf()
            model.load_state_dict(arrays.to_torch_state_dict())
            devices[name] = (
                model,
                MOMENTUM(model.parameters()),
                iter(batches(4, seed=int(name))),
            )
        for update in made.updates:
            if update.server_round == server_round:
                model, optimizer, data = devices[update.device]
                x, y = next(data)
                features = model(x)
                _, gradient = half.step(features.detach(), y)
                optimizer.zero_grad()
                features.backward(gradient)
                optimizer.step()
        replies = [reply_of(devices[name][0], rows=64) for name in "012"]
        arrays, _ = FedAvg().aggregate_train(server_round, replies)
    replayed = {f"device.{k}": v for k, v in arrays.to_torch_state_dict().items()}
    replayed |= {f"server.{k}": v for k, v in weights(half.model).items()}
    assert same(replayed, split_weights)


def reply_of(model: nn.Module, rows: int) -> Message:
    content = {
        "arrays": ArrayRecord(model.state_dict()),
        "metrics": MetricRecord({"num-examples": rows}),
    }
    return Message(RecordDict(content), 1, MessageType.TRAIN)


# 4. Layers with a state or a mode


def test_normalisation_in_both_halves_is_as_unsplit() -> None:
    halves = {"server": norm_server_half, "device": NormDeviceHalf}
    split_weights, _ = split(
        SplitLearning, 1, 1, four_batches, ADAM, steps=20, **halves
    )
    assert same(split_weights, unsplit(batches(4) * 5, ADAM, **halves))


def test_dropout_in_the_device_half_is_as_unsplit() -> None:
    split_weights, _ = split(
        SplitLearning, 1, 1, four_batches, ADAM, steps=8, device=DropDeviceHalf
    )
    turn = derive_seed(0, "0", 1)
    assert same(
        split_weights, unsplit(batches(4) * 2, ADAM, device=DropDeviceHalf, seed=turn)
    )


def test_dropout_in_the_server_half_draws_from_a_stream_of_its_own() -> None:
    first, _ = split(SplitLearning, 1, 1, four_batches, ADAM, server=drop_server_half)
    again, _ = split(SplitLearning, 1, 1, four_batches, ADAM, server=drop_server_half)
    other, _ = split(
        SplitLearning, 1, 1, four_batches, ADAM, server=drop_server_half, seed=1
    )
    assert same(first, again)
    assert not same(first, other)


def test_dropout_is_off_in_evaluation() -> None:
    half = HalfTrainer(seeded(drop_server_half), CROSS_ENTROPY, ADAM, device="cpu")
    features = torch.randn(4, 64)
    assert torch.equal(
        half.predict(features), copy.deepcopy(half.model).eval()(features)
    )
    assert half.model.training


@pytest.mark.parametrize(
    "optimizer",
    [partial(torch.optim.AdamW, lr=1e-2), partial(PLAIN_SGD, weight_decay=0.1)],
)
def test_weight_decay_is_as_unsplit(optimizer: Any) -> None:
    split_weights, _ = split(SplitLearning, 1, 1, four_batches, optimizer, steps=20)
    assert same(split_weights, unsplit(batches(4) * 5, optimizer))


def test_clipping_is_by_half() -> None:
    """The one thing that a split changes: no one knows the norm of both halves' gradients."""
    clipped, _ = split(SplitLearning, 1, 1, four_batches, PLAIN_SGD, max_grad_norm=1e-3)
    plain, _ = split(SplitLearning, 1, 1, four_batches, PLAIN_SGD)
    moved = {name: float((clipped[name] - plain[name]).abs().max()) for name in plain}
    assert moved["server.layers.1.weight"] > 1e-4
    start = weights(seeded(ServerHalf))
    steps = (
        sum(
            float((clipped[f"server.{name}"] - start[name]).square().sum())
            for name in start
        )
        ** 0.5
    )
    assert steps <= 4 * 0.1 * 1e-3 * 1.01


# 5. The device has the last layers, too


def middle() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU())


def drop_middle() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.5))


def tail() -> nn.Module:
    return nn.Sequential(
        nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)
    )


def ends() -> nn.Module:
    return HeadAndTail(seeded(NormDeviceHalf), seeded(tail))


def u_shaped(
    strategy: type[SplitLearning],
    count: int,
    rounds: int,
    optimizer: Any,
    steps: int = 4,
    server: Callable[[], nn.Module] = middle,
    **options: Any,
) -> tuple[dict[str, Tensor], SplitLearning]:
    options = {"devices": all_of(count), **options}
    made = strategy(seeded(server), None, optimizer, device="cpu", **options)
    client = SplitClientApp(
        NormDeviceHalf, four_batches, optimizer, tail=tail, loss_fn=CROSS_ENTROPY
    )
    config = ConfigRecord({"steps-per-turn": steps})
    result = made.start(
        LocalGrid(client, count),
        ArrayRecord(ends().state_dict()),
        rounds,
        train_config=config,
    )
    return made.joined_state_dict(result.arrays), made


class OwnStream(nn.Module):
    """Draws as a server half does: step n from (seed, n)."""

    def __init__(self, server: nn.Module) -> None:
        super().__init__()
        self.server = server
        self.steps = 0

    def forward(self, x: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(0, "server-half", self.steps))
            self.steps += 1
            return self.server(x)


def unsplit_u(
    optimizer: Any, server: Callable[[], nn.Module] = middle
) -> dict[str, Tensor]:
    """Plain PyTorch training of first, middle and last layers, 20 steps."""
    trained = unsplit(
        batches(4) * 5, optimizer, server=lambda: OwnStream(server()), device=ends
    )
    return {
        name.replace("server.server.", "server."): value
        for name, value in trained.items()
    }


@pytest.mark.parametrize("optimizer", [MOMENTUM, ADAM])
@pytest.mark.parametrize(
    ("strategy", "server"),
    [
        *((strategy, middle) for strategy in (SplitLearning, SplitFedV1, SplitFedV2)),
        *((strategy, drop_middle) for strategy in (SplitLearning, SplitFedV2)),
    ],
)
def test_u_shaped_one_device_is_unsplit_training(
    strategy: type[SplitLearning], optimizer: Any, server: Callable[[], nn.Module]
) -> None:
    """V1's copies have random streams of their own: there without dropout."""
    split_weights, _ = u_shaped(strategy, 1, 1, optimizer, steps=20, server=server)
    assert same(split_weights, unsplit_u(optimizer, server))


@pytest.mark.parametrize("optimizer", [MOMENTUM, ADAM])
@pytest.mark.parametrize("server", [middle, drop_middle])
def test_u_shaped_one_device_over_rounds_is_unsplit_training(
    optimizer: Any, server: Callable[[], nn.Module]
) -> None:
    split_weights, _ = u_shaped(
        SplitLearning, 1, 5, optimizer, server=server, optimizer_state="relay"
    )
    assert same(split_weights, unsplit_u(optimizer, server))


def test_u_shaped_splitfed_v1_is_fedavg() -> None:
    split_weights, made = u_shaped(SplitFedV1, 3, 4, PLAIN_SGD)
    joined = JoinedModel(ends(), seeded(middle))
    client = SplitClientApp(
        NormDeviceHalf,
        four_batches,
        PLAIN_SGD,
        tail=tail,
        server_model=middle,
        loss_fn=CROSS_ENTROPY,
    )
    result = all_of(3).start(LocalGrid(client, 3), ArrayRecord(joined.state_dict()), 4)
    whole = result.arrays.to_torch_state_dict()
    for name in [name for name in whole if name.endswith("num_batches_tracked")]:
        del split_weights[name], whole[name]
    assert farthest(split_weights, whole) < 1e-6
    assert made.ledger.of(4, "train").loss == pytest.approx(
        result.train_metrics_clientapp[4]["train_loss"]
    )


def test_u_shaped_splitfed_v2_with_devices_in_each_other_s_way() -> None:
    """Three at once, both cuts compressed: between a device's two frames others step the server half."""
    codecs = {
        "codec": cut_codec("splitfc", uplink_bits=4, downlink_bits=4, reduction=2)
    }
    codecs["output_codec"] = cut_codec(
        "splitfc", uplink_bits=4, downlink_bits=6, reduction=2
    )
    trained, made = u_shaped(
        SplitFedV2, 3, 6, ADAM, steps=20, server=drop_middle, **codecs
    )
    assert all(value.isfinite().all() for value in trained.values())
    first, last = (made.ledger.of(server_round, "train") for server_round in (1, 6))
    # 0.30 to 0.45 over ten seeds and two thread counts
    assert last.loss < 0.9 * first.loss
    assert made.half.steps == 6 * 3 * 20
    assert (
        last.uplink_output_bits_per_entry
        <= 4
        < last.downlink_output_bits_per_entry
        <= 6
    )


# 6. Swapping


@pytest.mark.parametrize(
    "strategy", [FedAvg, partial(FedProx, proximal_mu=0.1), partial(FedAdam, eta=1e-2)]
)
def test_flowers_strategies_run_the_same_app_unsplit_and_over_device_halves(
    strategy: Callable[..., Strategy],
) -> None:
    start = JoinedModel(seeded(DeviceHalf), seeded(ServerHalf)).state_dict()
    whole = fedavg(3, 2, four_batches, ADAM, strategy)
    halves, made = split(
        SplitFedV2, 3, 2, four_batches, ADAM, devices=all_of(3, strategy)
    )
    for trained in (whole, halves):
        assert trained.keys() == start.keys()
        assert farthest(trained, start) > 1e-3
        assert all(np.isfinite(value.numpy()).all() for value in trained.values())
    assert made.ledger.of(2, "train").steps == 12


@pytest.mark.parametrize("preset", [SplitFedV1, SplitFedV2])
def test_fedprox_pulls_both_paths_towards_the_rounds_start(
    preset: type[SplitLearning],
) -> None:
    start = seeded(DeviceHalf).state_dict()

    def moved(strategy: Callable[..., Strategy]) -> float:
        trained, _ = split(
            preset, 3, 1, four_batches, PLAIN_SGD, devices=all_of(3, strategy)
        )
        return sum(
            float((trained[f"device.{name}"] - start[name]).square().sum())
            for name in start
        )

    # 0.18 to 0.41 over ten seeds and two thread counts
    assert moved(partial(FedProx, proximal_mu=5.0)) < 0.9 * moved(FedAvg)
    unsplit_moved = farthest(
        fedavg(3, 1, four_batches, PLAIN_SGD, partial(FedProx, proximal_mu=5.0)),
        {
            **{f"device.{k}": v for k, v in start.items()},
            **{f"server.{k}": v for k, v in seeded(ServerHalf).state_dict().items()},
        },
    )
    assert unsplit_moved > 0


def test_the_paper_s_codec_fits_every_variant() -> None:
    for preset in (
        SplitFC,
        partial(SplitFedV1, codec="splitfc"),
        partial(SplitFedV2, codec="splitfc"),
    ):
        made = preset(
            seeded(ServerHalf), CROSS_ENTROPY, ADAM, device="cpu", devices=all_of(2)
        )
        made.codec = replace(made.codec, uplink_bits=2.0, downlink_bits=2.0)
        result = made.start(
            LocalGrid(app(four_batches, ADAM), 2),
            ArrayRecord(seeded(DeviceHalf).state_dict()),
            2,
        )
        assert result.train_metrics_clientapp[2]["uplink_bits_per_entry"] <= 2
