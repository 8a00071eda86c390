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

STREAM, MESSAGES = EndpointConfig(), EndpointConfig(transport="messages")
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


def make_app() -> SplitClientApp:
    return SplitClientApp(
        DeviceHalf,
        load_data,
        partial(torch.optim.Adam, lr=1e-2),
        loss_fn=nn.CrossEntropyLoss(),
    )


def run(
    endpoint: EndpointConfig,
    app=None,
    server=ServerHalf,
    device=DeviceHalf,
    loss_fn=CROSS_ENTROPY,
    **options,
):
    options.setdefault("devices", RoundRobin(min_available_nodes=3))
    strategy = SplitLearning(
        seeded(server),
        loss_fn,
        partial(torch.optim.Adam, lr=1e-2),
        endpoint=endpoint,
        **options,
    )
    grid = LocalGrid(app or make_app(), 3, workers=0)
    config = ConfigRecord({"steps-per-turn": 5, "seed": 3})
    result = strategy.start(
        grid, ArrayRecord(seeded(device).state_dict()), 3, train_config=config
    )
    return strategy, result, grid


@pytest.mark.parametrize("codec", ["float32", "splitfc"])
def test_messages_give_the_run_that_streams_give(codec):
    options = {
        "codec": cut_codec(codec, uplink_bits=3, downlink_bits=3),
        "optimizer_state": "relay",
    }
    by_stream, streamed, _ = run(STREAM, **options)
    by_message, mailed, grid = run(MESSAGES, **options)
    assert by_message.ledger.digest() == by_stream.ledger.digest()
    assert same(weights(by_message.server_model), weights(by_stream.server_model))
    assert same(
        mailed.arrays.to_torch_state_dict(), streamed.arrays.to_torch_state_dict()
    )
    assert by_message.ledger.total("train").steps == 15
    for key in ("accuracy", "eval_loss", "eval_acc"):
        ours, theirs = (
            r.evaluate_metrics_clientapp[3].get(key) for r in (mailed, streamed)
        )
        assert ours == theirs
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
    app = SplitClientApp(
        DeviceHalf,
        load_data,
        partial(torch.optim.Adam, lr=1e-2),
        tail=tail,
        loss_fn=nn.CrossEntropyLoss(),
    )
    options = {
        "app": app,
        "server": middle,
        "device": lambda: HeadAndTail(DeviceHalf(), tail()),
        "loss_fn": None,
    }
    options |= {"codec": cut, "output_codec": cut, "optimizer_state": "relay"}
    by_stream, streamed, _ = run(STREAM, **options)
    by_message, mailed, grid = run(MESSAGES, **options)
    assert by_message.ledger.digest() == by_stream.ledger.digest()
    assert same(weights(by_message.server_model), weights(by_stream.server_model))
    assert same(
        mailed.arrays.to_torch_state_dict(), streamed.arrays.to_torch_state_dict()
    )
    assert by_message.ledger.total("train").steps == by_message.half.steps == 15
    assert by_message.ledger.total("train").loss == by_stream.ledger.total("train").loss
    for key in ("eval_loss", "eval_acc"):
        assert (
            mailed.evaluate_metrics_clientapp[3][key]
            == streamed.evaluate_metrics_clientapp[3][key]
        )
    assert not any(context.state for context in grid.contexts.values())


def test_messages_with_a_sample_of_devices_and_proximal_term():
    options = {"devices": FedAvg(min_available_nodes=3), "shared_server_half": False}
    by_stream, streamed, _ = run(STREAM, **options)
    by_message, mailed, _ = run(MESSAGES, **options)
    assert same(
        mailed.arrays.to_torch_state_dict(), streamed.arrays.to_torch_state_dict()
    )
    assert same(weights(by_message.server_model), weights(by_stream.server_model))


def test_a_loop_of_ones_own_is_told_what_it_needs(caplog):
    def own_loop(message, context):
        if message.metadata.message_type.startswith("query"):
            return answer_device_query(message, context)
        with connect(message, context):
            raise AssertionError("not reached")

    run(MESSAGES, own_loop)
    assert (
        f"{TicketError.__name__}: the strategy sends frames in Flower's messages"
        in caplog.text
    )


def test_a_frame_that_is_none_fails_the_device_alone(caplog):
    good = make_app()

    def sometimes_garbage(message, context):
        reply = good(message, context)
        if (
            message.metadata.message_type == "train"
            and context.node_config["partition-id"] == 1
        ):
            garbage = ArrayRecord([torch.zeros(7).numpy()])
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
