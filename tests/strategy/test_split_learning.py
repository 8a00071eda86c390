"""Strategies over real sessions; the grid runs the app in this process."""

import copy
import json
import resource
import threading
import time
from collections import namedtuple
from dataclasses import replace
from functools import partial
from inspect import signature

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam, FedAvg
from torch import nn

from flwr_splitfc import (
    JoinedModel,
    NodeConfigBudgets,
    RoundRobin,
    RunFailed,
    SplitClientApp,
    SplitFC,
    SplitFedV1,
    SplitLearning,
    answer_device_query,
    connect,
    cut_codec,
    split_at,
)
from flwr_splitfc.codec import codec_settings
from tests.halves import DeviceHalf, ServerHalf, batches, same, seeded, weights
from tests.local_grid import LocalGrid

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
ADAM = partial(torch.optim.Adam, lr=1e-2)
CROSS_ENTROPY = nn.CrossEntropyLoss()
NamedShapes = namedtuple("NamedShapes", ["hidden", "other"])


def load_data(context):
    """Five batches of the device's own."""
    data = batches(5, seed=context.node_config["partition-id"])
    return data, data


def app(optimizer=ADAM, **options):
    options = {
        "server_model": partial(seeded, ServerHalf),
        "loss_fn": CROSS_ENTROPY,
        **options,
    }
    return SplitClientApp(DeviceHalf, load_data, optimizer, **options)


def arrays():
    return ArrayRecord(seeded(DeviceHalf).state_dict())


def alone(**options):
    return RoundRobin(min_available_nodes=1, **options)


def split(strategy=SplitLearning, optimizer=ADAM, **options):
    options = {"device": "cpu", **options}
    return strategy(seeded(ServerHalf), CROSS_ENTROPY, optimizer, **options)


@pytest.mark.parametrize(
    "optimizer", [SGD, ADAM, partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1)]
)
@pytest.mark.parametrize("relayed", [True, False], ids=["five-turns", "one-turn"])
def test_one_device_equals_unsplit_training_bit_for_bit(optimizer, relayed):
    """20 steps in one turn, or in four turns with the optimizer's state handed on."""
    strategy = split(optimizer=optimizer, devices=alone(fraction_evaluate=0.0))
    rounds, steps = (4, 5) if relayed else (1, 20)
    result = strategy.start(
        LocalGrid(app(optimizer), 1),
        arrays(),
        rounds,
        train_config=ConfigRecord({"steps-per-turn": steps}),
    )

    joined = JoinedModel(seeded(DeviceHalf), seeded(ServerHalf))
    whole = optimizer(joined.parameters())
    for x, y in batches(5) * 4:
        whole.zero_grad()
        CROSS_ENTROPY(joined(x), y).backward()
        whole.step()
    assert same(strategy.joined_state_dict(result.arrays), weights(joined))


def test_devices_take_turns_and_hand_their_half_on():
    grid = LocalGrid(app(), 3)
    strategy = split(devices=RoundRobin(min_available_nodes=3, fraction_evaluate=0.0))
    result = strategy.start(grid, arrays(), 7)
    assert grid.trained == [0, 1, 2, 0, 1, 2, 0]
    assert list(result.train_metrics_clientapp) == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("devices", [FedAvg, partial(FedAdam, eta=0.01)])
def test_any_flower_strategy_combines_the_device_halves(devices):
    strategy = split(
        SplitFC,
        uplink_bits=2,
        downlink_bits=2,
        reduction=4,
        devices=devices(fraction_evaluate=0.5),
    )
    result = strategy.start(LocalGrid(app(), 4), arrays(), 6)
    first, last = result.train_metrics_clientapp[1], result.train_metrics_clientapp[6]
    # 0.27 to 0.73 over ten seeds and two thread counts
    assert last["train_loss"] < first["train_loss"]
    assert last["sessions"] == 4
    assert last["steps"] == 20
    assert last["num-examples"] == 320
    assert 0 < last["uplink_bits_per_entry"] <= 2
    assert 0 < last["downlink_bits_per_entry"] <= 2
    assert not same(result.arrays.to_torch_state_dict(), weights(seeded(DeviceHalf)))


class Silent(FedAvg):
    """Does not tell devices the round."""

    def configure_train(self, server_round, arrays, config, grid):
        for message in super().configure_train(server_round, arrays, config, grid):
            message.content = RecordDict({"arrays": arrays})
            yield message


def test_rounds_are_known_also_where_the_strategy_does_not_tell():
    strategy = split(devices=Silent(fraction_evaluate=0.0))
    result = strategy.start(LocalGrid(app(), 2), arrays(), 2)
    assert [
        metrics["steps"] for metrics in result.train_metrics_clientapp.values()
    ] == [10, 10]


def test_bytes_in_the_result_are_sums_and_include_the_model():
    strategy = split(devices=FedAvg(fraction_evaluate=0.0))
    result = strategy.start(LocalGrid(app(), 2), arrays(), 1)
    metrics = result.train_metrics_clientapp[1]
    assert (
        metrics["uplink_features_bytes"]
        == metrics["downlink_gradient_bytes"]
        == 2 * 5 * 16 * 64 * 4
    )
    sent = sum(len(array.data) for array in arrays().values())
    assert metrics["uplink_model_bytes"] == metrics["downlink_model_bytes"] == 2 * sent
    parts = [
        metrics[f"uplink_{kind}_bytes"]
        for kind in ("features", "labels", "state", "model", "envelope", "framing")
    ]
    assert metrics["uplink_bytes"] == sum(parts)
    assert all(part > 0 for part in parts)
    assert metrics["device_codec_seconds"] > 0


def test_it_learns_and_evaluates_on_devices_and_centrally():
    strategy = split(
        SplitFC,
        uplink_bits=2,
        downlink_bits=2,
        reduction=2,
        devices=RoundRobin(),
        evaluate_every=4,
    )
    calls = []

    def evaluate(server_round, arrays):
        joined = strategy.joined_model(DeviceHalf(), arrays).eval()
        x, y = batches(1, rows=200, seed=99)[0]
        assert torch.equal(strategy.predict(joined.device(x)), joined(x))
        joined.eval()
        calls.append(server_round)
        return MetricRecord(
            {"accuracy": (joined(x).argmax(1) == y).float().mean().item()}
        )

    result = strategy.start(LocalGrid(app(), 2), arrays(), 18, evaluate_fn=evaluate)
    assert calls == [0, 4, 8, 12, 16, 18]
    assert list(result.evaluate_metrics_serverapp) == calls
    assert list(result.evaluate_metrics_clientapp) == calls[1:]
    # 1, from at most 0.40, over ten seeds and two thread counts; so have the devices
    assert (
        result.evaluate_metrics_serverapp[18]["accuracy"]
        > 0.8
        > result.evaluate_metrics_serverapp[0]["accuracy"]
    )
    on_devices = result.evaluate_metrics_clientapp[18]
    assert on_devices["eval_acc"] > 0.8
    assert on_devices["num-examples"] == 160
    assert on_devices["uplink_bits_per_entry"] == 16
    assert on_devices["uplink_labels_bytes"] == 0


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        (SplitLearning, {}),
        (SplitLearning, {"pipeline_depth": 3}),
        (SplitLearning, {"replay_steps": 2}),
        (SplitLearning, {"merge_steps": 3, "devices": FedAvg(fraction_evaluate=0.0)}),
        (SplitFedV1, {"devices": FedAvg(fraction_evaluate=0.0)}),
    ],
    ids=["in-turn", "pipelined", "replayed", "merged", "copies"],
)
def test_training_goes_on_in_training_mode_after_the_model_was_joined(
    strategy, options
):
    modes = []

    class Watched(ServerHalf):
        def forward(self, x):
            modes.append({part.training for part in self.modules()})
            return super().forward(x)

    options = {"devices": RoundRobin(fraction_evaluate=0.0), **options}
    made = strategy(Watched(), CROSS_ENTROPY, ADAM, device="cpu", **options)

    def evaluate(server_round, arrays):
        joined = made.joined_model(DeviceHalf(), arrays)
        assert not any(part.training for part in joined.modules())
        return MetricRecord({"rounds": server_round})

    made.start(LocalGrid(app(), 3), arrays(), 2, evaluate_fn=evaluate)
    assert len(modes) >= 10
    assert all(mode == {True} for mode in modes)


def cut_model():
    return nn.Sequential(*DeviceHalf().layers, *ServerHalf().layers)


@pytest.mark.parametrize("joined", [False, True])
def test_arrays_of_the_whole_model_are_refused_at_the_start(joined, tmp_path):
    half, server_half = split_at(cut_model(), 2)
    whole = JoinedModel(half, server_half) if joined else cut_model()
    options = {"checkpoint": tmp_path, "save_to": tmp_path}
    strategy = SplitLearning(server_half, CROSS_ENTROPY, ADAM, **options)
    wanted = "initial_arrays has the server half's entries, too, such as 'server.4.wei"
    if not joined:
        wanted = wanted.replace("server.", "")
    with pytest.raises(ValueError, match=wanted):
        strategy.start(LocalGrid(app(), 2), ArrayRecord(whole.state_dict()), 1)
    assert not list(tmp_path.iterdir())


def test_halves_by_hand_may_have_the_same_names():
    def device_half():
        first, second = nn.Linear(64, 64), nn.Linear(64, 64)
        return nn.Sequential(nn.Flatten(), first, nn.ReLU(), second)

    server_half = nn.Sequential(nn.ReLU(), nn.Linear(64, 64))
    whole = ArrayRecord(device_half().state_dict())
    assert set(server_half.state_dict()) < set(whole)
    strategy = SplitLearning(server_half, CROSS_ENTROPY, ADAM, devices=alone())
    client = SplitClientApp(device_half, load_data, ADAM)
    result = strategy.start(LocalGrid(client, 1), whole, 1)
    assert result.train_metrics_clientapp[1]["steps"] == 5


def test_without_a_ticket_the_same_app_trains_the_joined_model():
    joined = JoinedModel(seeded(DeviceHalf), seeded(ServerHalf))
    result = FedAvg().start(LocalGrid(app(), 2), ArrayRecord(joined.state_dict()), 3)
    # 0.44 to 0.79 over ten seeds and two thread counts
    assert (
        result.train_metrics_clientapp[3]["train_loss"]
        < result.train_metrics_clientapp[1]["train_loss"]
    )
    assert 0 < result.evaluate_metrics_clientapp[3]["eval_acc"] <= 1


def test_without_a_server_half_it_says_what_is_missing():
    grid = LocalGrid(app(server_model=None), 2)
    joined = JoinedModel(DeviceHalf(), ServerHalf())
    FedAvg(fraction_evaluate=0.0).start(grid, ArrayRecord(joined.state_dict()), 1)
    message = Message(
        RecordDict({"arrays": ArrayRecord(joined.state_dict())}), 1000, "train"
    )
    assert (
        "give SplitClientApp a server_model"
        in next(iter(grid.send_and_receive([message]))).error.reason
    )


def test_a_device_that_raises_mid_turn_does_not_stop_the_run():
    own = ClientApp()

    @own.train()
    def train(msg, context):
        model = DeviceHalf()
        model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
        optimizer = ADAM(model.parameters())
        with connect(msg, optimizer=optimizer) as server:
            for step, (x, y) in enumerate(load_data(context)[0]):
                if context.node_config["partition-id"] == 1 and step == 2:
                    raise OSError("battery empty")
                optimizer.zero_grad()
                server.loss(model(x), y).backward()
                optimizer.step()
            metrics = server.metrics()
        content = {
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord(metrics),
        }
        return Message(RecordDict(content), reply_to=msg)

    own.query("split_device")(answer_device_query)
    strategy = split(devices=RoundRobin(min_available_nodes=3, fraction_evaluate=0.0))
    result = strategy.start(LocalGrid(own, 3), arrays(), 3)
    assert [
        metrics["sessions"] for metrics in result.train_metrics_clientapp.values()
    ] == [1, 1, 1]
    assert [
        metrics["steps"] for metrics in result.train_metrics_clientapp.values()
    ] == [5, 2, 5]
    assert strategy.half.steps == 12


def test_a_round_that_runs_out_of_time_ends_and_frees_the_device():
    released = threading.Event()
    outcome = []

    def slow(msg, context):
        if msg.metadata.message_type != "train":
            return answer_device_query(msg, context)
        try:
            with connect(msg) as server:
                x, y = batches(1)[0]
                for _ in range(200):
                    server.loss(seeded(DeviceHalf)(x), y)
                    time.sleep(0.05)
        except Exception as error:
            outcome.append(type(error).__name__)
            raise
        finally:
            released.set()

    strategy = split(devices=alone(fraction_evaluate=0.0))
    with pytest.raises(RunFailed, match=r"no reply within 0\.5 s"):
        strategy.start(LocalGrid(slow, 1), arrays(), 1, timeout=0.5)
    assert released.wait(60)
    assert outcome[0] in ("SessionCancelled", "TicketExpired")
    assert strategy.half.steps < 200


def test_a_device_without_the_query_goes_by_its_node_id():
    def mute(msg, context):
        if msg.metadata.message_type.startswith("query"):
            raise ValueError("No query function registered")
        return app()(msg, context)

    grid = LocalGrid(mute, 2)
    split(devices=RoundRobin(fraction_evaluate=0.0)).start(grid, arrays(), 2)
    assert grid.trained == [0, 1]


@pytest.mark.parametrize(
    ("out", "loss_fn", "labels"),
    [
        (1, nn.MSELoss(), lambda x, y: x.mean((1, 2, 3))[:, None]),
        (4, nn.BCEWithLogitsLoss(), lambda x, y: nn.functional.one_hot(y, 4).float()),
    ],
    ids=["regression", "multi-label"],
)
def test_losses_over_other_labels(out, loss_fn, labels):
    def data(context):
        return [(x, labels(x, y)) for x, y in batches(5)], []

    strategy = SplitLearning(
        seeded(partial(ServerHalf, out)),
        loss_fn,
        ADAM,
        devices=alone(fraction_evaluate=0.0),
    )
    result = strategy.start(
        LocalGrid(SplitClientApp(DeviceHalf, data, ADAM), 1), arrays(), 10
    )
    # at most 0.26 over ten seeds and two thread counts
    assert (
        result.train_metrics_clientapp[10]["train_loss"]
        < 0.8 * result.train_metrics_clientapp[1]["train_loss"]
    )


def test_a_dense_map():
    """Segmentation: a class for every pixel."""
    server = seeded(
        lambda: nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(4, 2, 1))
    )

    def data(context):
        return [(x, (x[:, 0] > 1).long()) for x, _ in batches(5)], []

    strategy = SplitLearning(
        server,
        CROSS_ENTROPY,
        ADAM,
        codec="splitfc",
        devices=alone(fraction_evaluate=0.0),
    )
    strategy.codec = replace(strategy.codec, uplink_bits=4.0, downlink_bits=4.0)
    result = strategy.start(
        LocalGrid(SplitClientApp(DeviceHalf, data, ADAM), 1), arrays(), 10
    )
    # 0.58 to 0.82 over ten seeds and two thread counts
    assert (
        result.train_metrics_clientapp[10]["train_loss"]
        < result.train_metrics_clientapp[1]["train_loss"]
    )
    assert (
        result.train_metrics_clientapp[1]["uplink_labels_bytes"]
        < 5 * 16 * 64 / 8 + 5 * 60
    )


def server_after(**options):
    """The server half's weights after five steps on fixed features."""
    strategy = split(
        optimizer=partial(torch.optim.SGD, lr=0.1),
        devices=alone(fraction_evaluate=0.0),
        **options,
    )
    frozen = partial(torch.optim.SGD, lr=0.0)
    strategy.start(
        LocalGrid(app(frozen), 1),
        arrays(),
        1,
        train_config=ConfigRecord({"steps-per-turn": 4}),
    )
    return weights(strategy.server_model)


def plain_server(steps, lr=0.1, norm=None, gamma=1.0):
    server, device = seeded(ServerHalf), seeded(DeviceHalf)
    optimizer = torch.optim.SGD(server.parameters(), lr=lr)
    for group in steps:
        optimizer.zero_grad()
        for x, y in group:
            (CROSS_ENTROPY(server(device(x).detach()), y) / len(group)).backward()
        if norm is not None:
            nn.utils.clip_grad_norm_(server.parameters(), norm)
        optimizer.step()
        optimizer.param_groups[0]["lr"] *= gamma
    return weights(server)


def test_server_options():
    data = batches(5)[:4]
    singly = [[batch] for batch in data]
    for options, wanted in [
        ({"accumulate_steps": 2}, plain_server([data[:2], data[2:]])),
        ({"max_grad_norm": 0.01}, plain_server(singly, norm=0.01)),
        (
            {"scheduler": partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5)},
            plain_server(singly, gamma=0.5),
        ),
    ]:
        got = server_after(**options)
        assert all(
            torch.allclose(got[name], wanted[name], atol=1e-6) for name in wanted
        ), options
        assert not same(got, server_after())


def test_saved_halves_load_into_plain_models(tmp_path):
    strategy = split(save_to=tmp_path, devices=alone(fraction_evaluate=0.0))
    result = strategy.start(LocalGrid(app(), 1), arrays(), 1)
    joined = JoinedModel(DeviceHalf(), ServerHalf())
    joined.load_state_dict(torch.load(tmp_path / "joined.pt", weights_only=True))
    joined.device.load_state_dict(torch.load(tmp_path / "device.pt", weights_only=True))
    joined.server.load_state_dict(torch.load(tmp_path / "server.pt", weights_only=True))
    assert same(weights(joined), strategy.joined_state_dict(result.arrays))


@pytest.fixture
def small_files():
    """No file becomes larger than 100 kB; Python ignores the signal."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_files")
def test_a_full_disk_costs_the_files_and_not_the_result(tmp_path, caplog):
    server = seeded(ServerHalf)
    server.register_buffer("table", torch.ones(100_000))
    strategy = SplitLearning(
        server, CROSS_ENTROPY, ADAM, device="cpu", devices=alone(), save_to=tmp_path
    )
    result = strategy.start(LocalGrid(app(), 1), arrays(), 1)
    assert result.arrays
    assert "could not be saved" in caplog.text
    # a device half of this round beside a server half of another would be no model
    assert not list(tmp_path.iterdir())


def test_saved_halves_of_a_cut_model_load_into_the_model_itself(tmp_path):
    whole = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64, 4),
        )
    )
    device, server = split_at(copy.deepcopy(whole), 1)
    client = SplitClientApp(lambda: copy.deepcopy(device), load_data, ADAM)
    strategy = SplitLearning(
        server, CROSS_ENTROPY, ADAM, device="cpu", devices=alone(), save_to=tmp_path
    )
    strategy.start(LocalGrid(client, 1), ArrayRecord(device.state_dict()), 1)
    before = weights(whole)
    whole.load_state_dict(torch.load(tmp_path / "unsplit.pt", weights_only=True))
    assert not same(weights(whole), before)


def test_the_same_seed_gives_the_same_run_and_another_another():
    def run(seed):
        strategy = split(
            SplitFC,
            uplink_bits=2,
            downlink_bits=2,
            reduction=4,
            devices=RoundRobin(),
            seed=seed,
        )
        result = strategy.start(LocalGrid(app(), 2), arrays(), 4)
        return strategy.joined_state_dict(result.arrays)

    assert same(run(1), run(1))
    assert not same(run(1), run(2))


def test_progress_has_a_row_and_a_line_per_round(tmp_path, caplog):
    strategy = split(devices=RoundRobin(), evaluate_every=2)
    with caplog.at_level("INFO", "flwr"):
        strategy.start(LocalGrid(app(), 2), arrays(), 3)
    rows = strategy.progress.rows
    assert [row["round"] for row in rows] == [1, 2, 3]
    assert [row["accuracy"] is None for row in rows] == [True, False, False]
    assert all(row["steps"] == 5 and row["uplink_bits_per_entry"] == 32 for row in rows)
    assert (
        sum("round 2/3 | loss" in record.getMessage() for record in caplog.records) == 1
    )
    strategy.progress.write(tmp_path / "deep" / "results.json", seed=0)
    written = json.loads((tmp_path / "deep" / "results.json").read_text())
    assert written["seed"] == 0
    assert written["rounds"] == rows
    assert len(strategy.progress.table().splitlines()) == 2 + 2


def test_errors_at_the_cut_are_in_metrics_rows_lines_and_the_file(tmp_path, caplog):
    codec = cut_codec("int8")
    strategy = split(devices=RoundRobin(fraction_evaluate=0.0), codec=codec)
    config = ConfigRecord({"steps-per-turn": 10})
    with caplog.at_level("INFO", "flwr"):
        result = strategy.start(LocalGrid(app(), 2), arrays(), 2, train_config=config)
    rows = strategy.progress.rows
    for server_round, metrics in result.train_metrics_clientapp.items():
        row = rows[server_round - 1]
        for error in ("feature_error", "gradient_error"):
            assert 0 < metrics[error] == row[error] < 0.01
    lines = [record.getMessage() for record in caplog.records]
    assert sum("| error <0.01% / " in line for line in lines) == 2
    strategy.progress.write(tmp_path / "results.json")
    written = json.loads((tmp_path / "results.json").read_text())
    # one device a round
    for device, row in zip(("0", "1"), rows, strict=True):
        assert written["devices"][device]["feature_error"] == row["feature_error"]
        assert written["devices"][device]["gradient_error"] == row["gradient_error"]
    assert written["traffic"]["train"]["feature_error_steps"] == 2


@pytest.mark.parametrize(("codec", "warned"), [("top-s", 1), ("float32", 0)])
def test_a_run_whose_features_arrive_too_coarse_is_warned_of(codec, warned, caplog):
    """Of the 64 features of each sample, three arrive."""
    coarse = cut_codec(codec, uplink_bits=1.4, downlink_bits=2)
    strategy = split(devices=RoundRobin(fraction_evaluate=0.0), codec=coarse)
    config = ConfigRecord({"steps-per-turn": 10})
    strategy.start(LocalGrid(app(), 2), arrays(), 11, train_config=config)
    warnings = [line for line in caplog.messages if "Little can be learned" in line]
    assert len(warnings) == warned
    assert all("of the features" in warning for warning in warnings)


def test_settings_out_of_range():
    for options in (
        {"evaluate_every": 0},
        {"accumulate_steps": 0},
        {"max_grad_norm": -1.0},
        {"optimizer_state": "x"},
    ):
        with pytest.raises(ValueError, match=next(iter(options))):
            split(**options)
    with pytest.raises(ValueError, match="output_codec is for loss_fn=None"):
        split(output_codec="splitfc")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("budgets", "throughput 0.05s"),
        ("budgets", (0.2, 0.4)),
        ("budgets", 0.2),
        ("budgets", NodeConfigBudgets),
        ("budgets", [NodeConfigBudgets(), NodeConfigBudgets]),
        ("seed", None),
        ("seed", 1.5),
        ("seed", "1"),
        ("seed", 2**70),
        ("feature_shape", 400),
        ("feature_shape", "400"),
        ("feature_shape", {"hidden": 400}),
        ("feature_shape", [(4, 4), 4.0]),
        ("feature_shape", NamedShapes((4, 4), (4,))),
        ("endpoint", {"split-port": 1}),
        ("evaluate_every", "2"),
        ("evaluate_every", 2.5),
        ("pipeline_depth", "4"),
        ("send_every", "2"),
        ("max_failed_rounds", "2"),
        ("merge_steps", "2"),
        ("replay_steps", "2"),
        ("accumulate_steps", "2"),
        ("max_grad_norm", "1.0"),
        ("device", "gpu"),
        ("device", ["cpu", "gpu"]),
        ("device", 1.5),
    ],
)
def test_an_argument_of_a_wrong_kind_is_named_at_once(option, value):
    with pytest.raises(ValueError, match=f"^{option}"):
        split(**{option: value})


@pytest.mark.parametrize("num_rounds", ["3", 2.5])
def test_a_number_of_rounds_of_a_wrong_kind_is_named_at_once(num_rounds):
    with pytest.raises(
        ValueError, match=rf"^num_rounds is '?{num_rounds}'?, wanted an int"
    ):
        split().start(LocalGrid(app(), 2), arrays(), num_rounds)


@pytest.mark.parametrize(
    ("found", "described"),
    [((0.5, {"accuracy": 0.9}), "a tuple of 2"), (0.5, "a float")],
)
def test_an_evaluate_fn_in_another_form_is_told_what_is_wanted(found, described):
    said = rf"evaluate_fn\(.*\) returned {described}, wanted a dict of numbers"
    with pytest.raises(ValueError, match=said):
        split().start(LocalGrid(app(), 2), arrays(), 1, evaluate_fn=lambda *_: found)


def test_an_evaluate_fn_may_return_a_dict():
    strategy = split()
    found = {"accuracy": torch.tensor(0.5), "f1": (np.float32(0.25), True)}
    result = strategy.start(
        LocalGrid(app(), 2), arrays(), 1, evaluate_fn=lambda *_: found
    )
    assert strategy.progress.rounds[0].accuracy == 0.5
    assert dict(result.evaluate_metrics_serverapp[1]) == {
        "accuracy": 0.5,
        "f1": [0.25, 1],
    }


def test_numbers_of_numpy_are_whole_numbers():
    def digest(seed, size):
        strategy = split(seed=seed, feature_shape=(size, None, size))
        strategy.start(LocalGrid(app(), 2), arrays(), 1)
        return strategy.ledger.digest()

    assert digest(np.int64(3), np.int32(4)) == digest(3, 4)


@pytest.mark.parametrize(
    ("loss_fn", "tail", "said"),
    [
        (None, None, "give tail and loss_fn"),
        (CROSS_ENTROPY, nn.Identity, "make the strategy with loss_fn=None"),
    ],
)
def test_devices_and_strategy_agree_whose_the_loss_is(loss_fn, tail, said):
    strategy = SplitLearning(seeded(ServerHalf), loss_fn, ADAM, devices=alone())
    with pytest.raises(RunFailed, match=said):
        strategy.start(LocalGrid(app(tail=tail), 1), arrays(), 1)
    assert said in strategy.ledger.failures(1)["0"]


def test_a_loss_that_devices_do_not_tell_is_none(tmp_path):
    """U-shaped, with a loop of one's own that reports no loss: not 0."""

    def train(message, context):
        if message.metadata.message_type.startswith("query"):
            return answer_device_query(message, context)
        with connect(message, context) as server:
            device_half = seeded(DeviceHalf)
            for x, y in load_data(context)[0]:
                CROSS_ENTROPY(server.forward(device_half(x)), y).backward()
            metrics = MetricRecord(server.metrics())
        return Message(
            RecordDict(
                {"arrays": ArrayRecord(device_half.state_dict()), "metrics": metrics}
            ),
            reply_to=message,
        )

    strategy = SplitLearning(
        seeded(ServerHalf), None, ADAM, devices=alone(fraction_evaluate=0.0)
    )
    result = strategy.start(LocalGrid(train, 1), arrays(), 2)
    assert [row["loss"] for row in strategy.progress.rows] == [None, None]
    assert "train_loss" not in result.train_metrics_clientapp[2]
    assert result.train_metrics_clientapp[2]["steps"] == 5


def test_splitfc_takes_every_setting_of_its_codec():
    assert set(codec_settings("splitfc")) <= signature(SplitFC).parameters.keys()
