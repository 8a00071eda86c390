"""Device halves without parameters to train: features go up, and nothing comes down."""

import json
from functools import partial

import pytest
import torch
from flwr.app import Context, RecordDict
from torch import nn

from flwr_splitfc import SplitClientApp, SplitServerApp, connect, cut_codec
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
