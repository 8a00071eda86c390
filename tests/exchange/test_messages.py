"""Frames in Flower's messages: the same turn, step by step, for devices that cannot reach the ServerApp."""

from functools import partial

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp.strategy import FedAvg
from torch import nn

from flwr_splitfc import (
    EndpointConfig,
    HeadAndTail,
    RoundRobin,
    RunFailed,
    SplitClientApp,
    SplitLearning,
    answer_device_query,
    connect,
    cut_codec,
)
from flwr_splitfc.exchange import TicketError
from flwr_splitfc.exchange.protocol.frames import FRAME_KEY
from tests.halves import ServerHalf, same, seeded, weights
from tests.local_grid import LocalGrid

STREAM = EndpointConfig()
MESSAGES = EndpointConfig(transport="messages")
ADAM = partial(torch.optim.Adam, lr=1e-2)
CROSS_ENTROPY = nn.CrossEntropyLoss()


class DeviceHalf(nn.Sequential):
    """With running statistics and dropout: what a step repeats must leave no trace."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 4, 3, stride=2, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(0.2),
        )


def load_data(context):
    torch.manual_seed(int(context.node_config["partition-id"]))
    data = torch.utils.data.TensorDataset(
        torch.rand(48, 1, 8, 8), torch.randint(4, (48,))
    )
    loader = torch.utils.data.DataLoader(data, batch_size=16, shuffle=True)
    return loader, loader


def make_app(**options) -> SplitClientApp:
    return SplitClientApp(DeviceHalf, load_data, ADAM, loss_fn=CROSS_ENTROPY, **options)


def run(
    endpoint: EndpointConfig,
    app=None,
    server=ServerHalf,
    device=DeviceHalf,
    loss_fn=CROSS_ENTROPY,
    devices=None,
    **options,
):
    """The strategy after three rounds, its result, and the grid."""
    strategy = SplitLearning(
        seeded(server),
        loss_fn,
        ADAM,
        endpoint=endpoint,
        devices=devices or RoundRobin(min_available_nodes=3),
        **options,
    )
    grid = LocalGrid(app or make_app(), 3, workers=0)
    config = ConfigRecord({"steps-per-turn": 5, "seed": 3})
    arrays = ArrayRecord(seeded(device).state_dict())
    result = strategy.start(grid, arrays, 3, train_config=config)
    return strategy, result, grid


def assert_same_run(one, other) -> None:
    """Two runs sent the same payloads and have the same weights in the end."""
    strategy, result, _ = one
    other_strategy, other_result, _ = other
    assert strategy.ledger.digest() == other_strategy.ledger.digest()
    assert same(weights(strategy.server_model), weights(other_strategy.server_model))
    device = result.arrays.to_torch_state_dict()
    assert same(device, other_result.arrays.to_torch_state_dict())


def errors(strategy) -> tuple[float, float]:
    """Of features and of gradients, in the first step of three turns of five."""
    traffic = strategy.ledger.total("train")
    assert traffic.feature_error_steps == traffic.gradient_error_steps == 1
    return traffic.feature_error, traffic.gradient_error


def normalising():
    """A server half to which channels of all sizes matter."""
    return nn.Sequential(nn.BatchNorm2d(4), ServerHalf())


class UnevenHalf(DeviceHalf):
    """A device half whose channels differ in size."""

    def forward(self, x):
        sizes = torch.tensor([1.0, 1.0, 10.0, 100.0])
        return super().forward(x) * sizes.view(1, 4, 1, 1)


@pytest.mark.parametrize(
    ("cut", "halves"),
    [
        (cut_codec("float32"), {}),
        (cut_codec("splitfc", uplink_bits=3, downlink_bits=3), {}),
        # which levels channels from a turn's second step on
        (
            cut_codec("splitfc-rd", quality=12.5),
            {
                "app": SplitClientApp(
                    UnevenHalf, load_data, ADAM, loss_fn=CROSS_ENTROPY
                ),
                "server": normalising,
                "device": UnevenHalf,
            },
        ),
    ],
)
def test_messages_give_the_run_that_streams_give(cut, halves):
    options = {"codec": cut, "optimizer_state": "relay", **halves}
    by_stream = run(STREAM, **options)
    by_message = run(MESSAGES, **options)
    assert_same_run(by_message, by_stream)
    strategy, result, grid = by_message
    assert strategy.ledger.total("train").steps == 15
    streamed_strategy, streamed, _ = by_stream
    assert errors(strategy) == errors(streamed_strategy)
    ours = result.evaluate_metrics_clientapp[3]
    theirs = streamed.evaluate_metrics_clientapp[3]
    for key in ("accuracy", "eval_loss", "eval_acc"):
        assert ours.get(key) == theirs.get(key)
    # nothing is left behind
    assert not any(context.state for context in grid.contexts.values())


def middle():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Dropout(0.3)
    )


def tail():
    return nn.Sequential(
        nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 4)
    )


@pytest.mark.parametrize("codec", ["float32", "splitfc"])
def test_a_u_shaped_step_is_two_messages(codec):
    cut = cut_codec(codec, uplink_bits=4, downlink_bits=4)
    options = {
        "app": make_app(tail=tail),
        "server": middle,
        "device": lambda: HeadAndTail(DeviceHalf(), tail()),
        "loss_fn": None,
        "codec": cut,
        "output_codec": cut,
        "optimizer_state": "relay",
    }
    by_stream = run(STREAM, **options)
    by_message = run(MESSAGES, **options)
    assert_same_run(by_message, by_stream)
    strategy, result, grid = by_message
    streamed_strategy, streamed, _ = by_stream
    ours = strategy.ledger.total("train")
    theirs = streamed_strategy.ledger.total("train")
    assert ours.steps == strategy.half.steps == 15
    assert ours.loss == theirs.loss
    assert errors(strategy) == errors(streamed_strategy)
    found = result.evaluate_metrics_clientapp[3]
    for key in ("eval_loss", "eval_acc"):
        assert found[key] == streamed.evaluate_metrics_clientapp[3][key]
    assert not any(context.state for context in grid.contexts.values())


def test_messages_with_a_sample_of_devices():
    options = {"devices": FedAvg(min_available_nodes=3), "shared_server_half": False}
    assert_same_run(run(MESSAGES, **options), run(STREAM, **options))


def test_a_loop_of_ones_own_is_told_what_it_needs():
    def own_loop(message, context):
        if message.metadata.message_type.startswith("query"):
            return answer_device_query(message, context)
        with connect(message, context):
            raise AssertionError("not reached")

    told = f"{TicketError.__name__}: the strategy sends frames in Flower's messages"
    with pytest.raises(RunFailed, match=told):
        run(MESSAGES, own_loop)


def test_a_frame_that_is_none_fails_the_device_alone(caplog):
    good = make_app()

    def sometimes_garbage(message, context):
        reply = good(message, context)
        if (
            message.metadata.message_type == "train"
            and context.node_config["partition-id"] == 1
        ):
            garbage = ConfigRecord({"frame": bytes(7)})
            return Message(RecordDict({FRAME_KEY: garbage}), reply_to=message)
        return reply

    strategy, _, _ = run(MESSAGES, sometimes_garbage)
    assert strategy.ledger.failures(2).keys() == {"1"}
    assert strategy.ledger.total("train").steps == 10


def test_a_node_that_lost_its_turn_fails_by_name():
    good = make_app()

    def forgetful(message, context):
        if context.node_config["partition-id"] == 1:
            context.state.clear()
        return good(message, context)

    strategy, _, _ = run(MESSAGES, forgetful)
    assert "has no such turn" in strategy.ledger.failures(2)["1"]
    assert strategy.ledger.of(3, "train").steps == 5
