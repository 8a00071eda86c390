"""Device halves without parameters to train: features go up, and nothing comes down."""

import json
from functools import partial

import pytest
import torch
from flwr.app import ArrayRecord, Context, RecordDict
from torch import nn

from flwr_splitfc import (
    EndpointConfig,
    HeadAndTail,
    SplitClientApp,
    SplitLearning,
    SplitServerApp,
    connect,
    cut_codec,
)
from flwr_splitfc.exchange import SplitEndpoint
from tests.exchange.server_halves import ADAM, shared_half
from tests.halves import DeviceHalf, ServerHalf, batches, same, seeded, weights
from tests.local_grid import LocalGrid, ticket_message

STEPS = 6


def frozen() -> DeviceHalf:
    half = seeded(DeviceHalf)
    return half.requires_grad_(False)


@pytest.mark.parametrize("depth", [1, 3])
def test_the_server_half_trains_as_alone(depth):
    device_half, reference = frozen(), seeded(ServerHalf)
    optimizer = ADAM(reference.parameters())
    for x, y in batches(STEPS):
        optimizer.zero_grad()
        nn.functional.cross_entropy(reference(device_half(x)), y).backward()
        optimizer.step()
    endpoint = SplitEndpoint(shared_half(), cut_codec("float32"), pipeline_depth=depth)
    with endpoint:
        with connect(ticket_message(endpoint)) as server:
            for loss in server.pipelined(device_half, batches(STEPS)):
                loss.backward()
        assert same(weights(endpoint.halves.half.model), weights(reference))
        traffic = endpoint.ledger.of(1, "train")
    assert traffic.downlink_bytes["gradient"] == 0
    assert traffic.uplink_bytes["features"] == STEPS * 16 * 64 * 4
    assert traffic.steps == STEPS


@pytest.mark.parametrize("codec", ["splitfc", "splitfc-rd"])
def test_codecs_that_leave_rows_or_columns_out(codec):
    with SplitEndpoint(shared_half(), cut_codec(codec, uplink_bits=4)) as endpoint:
        with connect(ticket_message(endpoint)) as server:
            for x, y in batches(STEPS):
                server.loss(frozen()(x), y).backward()
        traffic = endpoint.ledger.of(1, "train")
    assert traffic.steps == STEPS
    assert traffic.downlink_bytes["gradient"] == 0
    assert traffic.gradient_error_steps == 0 < traffic.feature_error_steps


def test_without_a_graph_at_all_it_is_still_refused():
    with SplitEndpoint(shared_half(), cut_codec("float32")) as endpoint:
        x, y = batches(1)[0]
        with (
            connect(ticket_message(endpoint)) as server,
            pytest.raises(RuntimeError, match="no_grad"),
            torch.no_grad(),
        ):
            server.loss(seeded(DeviceHalf)(x), y)


def test_the_apps_train_a_frozen_backbone_and_warn_of_nothing(tmp_path, caplog):
    def load_data(context):
        data = batches(5, rows=64, seed=context.node_config["partition-id"])
        return data, data

    adam = partial(torch.optim.Adam, lr=1e-2)
    server = SplitServerApp(frozen, ServerHalf, nn.CrossEntropyLoss(), adam)
    grid = LocalGrid(SplitClientApp(frozen, load_data, adam), 2, workers=1)
    settings = {"results-dir": str(tmp_path), "num-devices": 2, "num-rounds": 6}
    server(grid, Context(1, 1, {}, RecordDict(), settings))
    rounds = json.loads((tmp_path / "results.json").read_text())["rounds"]
    assert rounds[-1]["loss"] < rounds[0]["loss"]
    assert "learn nothing" not in caplog.text


def middle() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU())


def frozen_head_and_tail() -> HeadAndTail:
    return HeadAndTail(frozen(), seeded(partial(nn.Linear, 16, 4)))


@pytest.mark.parametrize("structure", [False, True])
def test_last_layers_on_the_device_train_with_the_server_half_alone(structure):
    """A structure of one tensor is coded by the other fields of the message."""
    float32 = cut_codec("float32")
    half = shared_half(seeded(middle))
    half.half.loss_fn = None
    endpoint = SplitEndpoint(half, float32, output_codec=float32)
    if structure:
        half.half.model.insert(0, First())
    ends = frozen_head_and_tail()
    optimizer = ADAM(ends.tail.parameters())
    with endpoint:
        with connect(ticket_message(endpoint), optimizer=optimizer) as server:
            for x, y in batches(STEPS):
                features = ends.head(x)
                output = server.forward((features,) if structure else features)
                optimizer.zero_grad()
                nn.functional.cross_entropy(ends.tail(output), y).backward()
                optimizer.step()
        traffic = endpoint.ledger.of(1, "train")
    tail, server_half = trained_in_one_process()
    assert same(weights(ends.tail), tail)
    trained = [weight.detach() for weight in half.half.model.parameters()]
    assert all(map(torch.equal, trained, server_half))
    assert traffic.steps == STEPS
    assert traffic.downlink_bytes["gradient"] == 0 < traffic.downlink_bytes["output"]
    # of the output alone
    assert traffic.gradient_error_steps == traffic.feature_error_steps > 0
    assert traffic.gradient_error == 0


class First(nn.Module):
    """Takes the only tensor out of a tuple."""

    def forward(self, features):
        return features[0]


def trained_in_one_process() -> tuple[dict, list[torch.Tensor]]:
    """The tail's entries and the middle's weights after the same batches."""
    ends, server_half = frozen_head_and_tail(), seeded(middle)
    optimizers = [ADAM(part.parameters()) for part in (ends.tail, server_half)]
    for x, y in batches(STEPS):
        for optimizer in optimizers:
            optimizer.zero_grad()
        nn.functional.cross_entropy(ends(x, server_half), y).backward()
        for optimizer in optimizers:
            optimizer.step()
    return weights(ends.tail), [weight.detach() for weight in server_half.parameters()]


@pytest.mark.parametrize("u_shaped", [False, True])
def test_messages_give_the_run_that_streams_give(u_shaped):
    def load_data(context):
        data = batches(3, seed=context.node_config["partition-id"])
        return data, data

    def run(transport):
        model, loss_fn, tail = ServerHalf, nn.CrossEntropyLoss(), None
        ends = frozen()
        if u_shaped:
            model, loss_fn, tail = middle, None, partial(nn.Linear, 16, 4)
            ends = frozen_head_and_tail()
        strategy = SplitLearning(
            seeded(model), loss_fn, ADAM, endpoint=EndpointConfig(transport=transport)
        )
        app = SplitClientApp(
            frozen, load_data, ADAM, tail=tail, loss_fn=nn.CrossEntropyLoss()
        )
        grid = LocalGrid(app, 2, workers=0)
        result = strategy.start(grid, ArrayRecord(ends.state_dict()), 4)
        return strategy, result.arrays.to_torch_state_dict()

    (by_stream, wanted), (by_message, arrays) = run("stream"), run("messages")
    assert by_stream.ledger.digest() == by_message.ledger.digest()
    assert same(arrays, wanted)
    assert same(weights(by_message.server_model), weights(by_stream.server_model))
    assert by_message.ledger.total("train").downlink_bytes["gradient"] == 0
    assert all(
        torch.equal(arrays[name], tensor)
        for name, tensor in ends_of_start(u_shaped).items()
    )


def ends_of_start(u_shaped: bool) -> dict[str, torch.Tensor]:
    """The entries of the device half that stay as they were."""
    prefix = "head." if u_shaped else ""
    return {prefix + name: tensor for name, tensor in weights(frozen()).items()}
