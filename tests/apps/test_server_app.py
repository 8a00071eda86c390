"""A ServerApp from two halves and a run-config.

What it trains, what it writes, and which keys it refuses.
"""

import json
import warnings
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, Context, Message, RecordDict
from torch import nn

from flwr_splitfc import (
    HeadAndTail,
    JoinedModel,
    RunFailed,
    SplitClientApp,
    SplitServerApp,
)
from flwr_splitfc.strategy import CheckpointError
from tests.apps.server_runs import (
    CROSS_ENTROPY,
    TEST_SET,
    accuracy,
    joined,
    load_data,
    results_of,
    run,
)
from tests.exchange.test_hostile_replies import Wire
from tests.halves import DeviceHalf, ServerHalf, same, weights
from tests.local_grid import LocalGrid


def test_a_run_config_without_a_key_trains_splitfc_on_devices_in_turn(
    tmp_path: Path,
) -> None:
    results = run(tmp_path, uplink_bits=2.0, downlink_bits=2.0)
    assert [row["round"] for row in results["rounds"]] == [1, 2, 3]
    assert all(
        row["steps"] == 5 and 0 < row["uplink_bits_per_entry"] <= 2
        for row in results["rounds"]
    )
    assert all(row["accuracy"] is not None for row in results["rounds"])
    assert results["codec"] == {
        "name": "splitfc",
        "uplink-bits": 2.0,
        "downlink-bits": 2.0,
        "evaluation": "float16",
    }
    assert results["seed"] == 0
    assert results["run_config"] == {
        "num-devices": 3,
        "results-dir": str(tmp_path),
        "uplink-bits": 2.0,
        "downlink-bits": 2.0,
    }
    assert {"versions", "payload_digest", "torch_threads"} <= results.keys()
    JoinedModel(DeviceHalf(), ServerHalf()).load_state_dict(joined(tmp_path))


@pytest.mark.parametrize(
    ("strategy", "devices", "steps"),
    [
        ("split-learning", "", 5),
        ("splitfed-v1", "", 15),
        ("splitfed-v2", "", 15),
        ("split-learning", "fedavg", 15),
        ("splitfed-v2", "round-robin", 5),
        ("splitfed-v1", "fedadam", 15),
    ],
)
def test_split_strategies(
    strategy: str, devices: str, steps: int, tmp_path: Path
) -> None:
    results = run(
        tmp_path,
        strategy=strategy,
        devices=devices,
        num_rounds=9,
        learning_rate=1e-2,
        evaluate_every=9,
    )
    rounds = results["rounds"]
    assert [row["steps"] for row in rounds] == 9 * [steps]
    assert all(row["uplink_bits_per_entry"] == 32 for row in rounds)
    assert [row["accuracy"] is None for row in rounds] == 8 * [True] + [False]
    # at most 0.04 over ten seeds and two thread counts
    assert rounds[8]["loss"] < 0.8 * rounds[0]["loss"]


@pytest.mark.parametrize(
    ("strategy", "devices", "round_trips"),
    [
        ("split-learning", ["0"], 5 + 1),
        ("splitfed-v2", ["0", "1", "2"], 5 + 1),
        ("fedavg", ["0", "1", "2"], 1),
    ],
)
def test_a_rounds_row_has_what_crossed_each_devices_link(
    tmp_path: Path, strategy: str, devices: list[str], round_trips: int
) -> None:
    """Five steps and Flower's message; without a cut the message alone."""
    results = run(tmp_path, strategy=strategy, num_rounds=1, evaluate_on_devices=True)
    (row,) = results["rounds"]
    links = row["links"]
    assert sorted(links["train"]) == devices
    assert {moved[2] for moved in links["train"].values()} == {round_trips}
    assert sorted(links["evaluate"]) == ["0", "1", "2"]
    assert {moved[2] for moved in links["evaluate"].values()} == {round_trips}
    moved = [each for purpose in links.values() for each in purpose.values()]
    assert [sum(column) for column in zip(*moved, strict=True)][:2] == [
        row["uplink_bytes"],
        row["downlink_bytes"],
    ]


def test_devices_evaluate_with_features_coded_as_for_inference(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "flwr")

    def results(folder: str, **options: Any) -> dict[str, Any]:
        cut = {
            "codec": "splitfc-rd",
            "uplink_bits": 4.0,
            "downlink_bits": 4.0,
            "evaluate_on_devices": True,
        }
        config = {
            "strategy": "split-learning",
            "learning_rate": 1e-2,
            "num_rounds": 3,
            "steps_per_turn": 5,
        }
        return run(tmp_path / folder, **config, **cut, **options)

    in_float32 = results("exact", evaluation="float32")
    in_codec = results("coded", evaluation="codec", evaluation_bits=0.3)
    exact, coded = in_float32["rounds"], in_codec["rounds"]
    alone = results("alone", evaluation="float32", evaluate=None)["rounds"]
    assert [row["accuracy"] for row in coded] == [row["accuracy"] for row in exact], (
        "training is the same"
    )
    # 0.74 to 1 over ten seeds and two thread counts; one class of four: 0.25
    assert exact[-1]["device_accuracy"] > 0.6
    sent = [
        each["traffic"]["evaluate"]["uplink_bytes"]["features"]
        for each in (in_codec, in_float32)
    ]
    assert sent[0] <= 0.3 / 32 * sent[1]
    assert f", on devices {coded[-1]['device_accuracy']:.1%} |" in caplog.text
    assert " accuracy on devices " in caplog.text
    assert [row["accuracy"] for row in alone] == [
        row["device_accuracy"] for row in exact
    ]
    assert {row["device_accuracy"] for row in alone} == {None}, "it is the accuracy"


@pytest.mark.parametrize("strategy", ["splitfc", "splitfed-v2", "fedavg"])
def test_with_last_layers_on_devices(strategy: str, tmp_path: Path) -> None:
    def middle() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU())

    adam = torch.optim.Adam
    tail = partial(nn.Linear, 16, 4)
    config = {
        "strategy": strategy,
        "num-devices": 3,
        "num-rounds": 5,
        "steps-per-turn": 20,
        "learning-rate": 1e-2,
        "uplink-bits": 2.0,
        "downlink-bits": 2.0,
        "output-codec": "splitfc",
        "output-downlink-bits": 5.0,
        "output-uplink-bits": 4.0,
        "output-reduction": 2,
        "evaluate-on-devices": True,
        "results-dir": str(tmp_path),
    }
    server = SplitServerApp(
        DeviceHalf, middle, None, adam, tail=tail, evaluate=accuracy
    )
    client = SplitClientApp(
        DeviceHalf,
        load_data,
        adam,
        tail=tail,
        server_model=middle,
        loss_fn=CROSS_ENTROPY,
    )
    results = results_of(server, client, config)
    # at most 0.14, and splitfc 0.74 to 0.87, over ten seeds and two thread counts
    assert results["rounds"][4]["loss"] < 0.95 * results["rounds"][0]["loss"]
    assert all(row["accuracy"] is not None for row in results["rounds"])
    if strategy == "fedavg":
        return
    settings = results["output_codec"]
    assert settings["name"] == "splitfc"
    assert settings["downlink-bits"] == 5.0
    assert settings["uplink-bits"] == 4.0
    traffic = results["traffic"]["train"]
    entries = traffic["output_entries"]
    assert 2 * entries < 8 * traffic["downlink_bytes"]["output"] <= 5 * entries
    assert 0 < 8 * traffic["uplink_bytes"]["output_gradient"] <= 4 * entries
    whole = JoinedModel(HeadAndTail(DeviceHalf(), tail()), middle())
    whole.load_state_dict(joined(tmp_path))
    assert not (tmp_path / "unsplit.pt").exists()


def test_an_output_that_arrives_too_coarse_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def middle() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU())

    adam = torch.optim.Adam
    tail = partial(nn.Linear, 16, 4)
    config = {
        "strategy": "split-learning",
        "num-devices": 3,
        "num-rounds": 10,
        # each turn has a measured step
        "steps-per-turn": 10,
        "output-codec": "top-s",
        # one entry of 16
        "output-downlink-bits": 2.0,
        "output-uplink-bits": 8.0,
        "results-dir": str(tmp_path),
    }
    server = SplitServerApp(DeviceHalf, middle, None, adam, tail=tail)
    client = SplitClientApp(
        DeviceHalf,
        load_data,
        adam,
        tail=tail,
        server_model=middle,
        loss_fn=CROSS_ENTROPY,
    )
    rounds = results_of(server, client, config)["rounds"]
    assert all(row["feature_error"] < 0.1 for row in rounds)
    assert all(row["gradient_error"] > 0.7 for row in rounds)
    (warning,) = [line for line in caplog.messages if "can be learned" in line]
    assert "of the output, relative to how it varies" in warning


class RecordingHalf(ServerHalf):
    """Knows the types of the features that came."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.add(x.dtype)
        return super().forward(x)


def u_shaped(folder: Path, *, tail: Any = None, **config: Any) -> dict[str, Any]:
    """The results.json of an app whose last layers are where the run-config says.

    ``server half`` in them is the first server half that was made.
    """
    made = []

    def server_half(context: Context) -> nn.Module:
        layers = ServerHalf().layers
        made.append(layers[:-1] if context.run_config["u-shaped"] else layers)
        return made[-1]

    adam = torch.optim.Adam
    config = {
        "num-devices": 3,
        "num-rounds": 5,
        "steps-per-turn": 20,
        "learning-rate": 1e-2,
        "evaluate-on-devices": True,
        "results-dir": str(folder),
        **config,
    }
    server = SplitServerApp(
        DeviceHalf, server_half, CROSS_ENTROPY, adam, tail=tail, evaluate=accuracy
    )
    client = SplitClientApp(
        DeviceHalf,
        load_data,
        adam,
        tail=tail,
        server_model=server_half,
        loss_fn=CROSS_ENTROPY,
    )
    return {**results_of(server, client, config), "server half": made[0]}


@pytest.mark.parametrize("strategy", ["split-learning", "splitfed-v1", "fedavg"])
@pytest.mark.parametrize("u_shape", [True, False])
def test_the_run_config_says_whose_the_last_layers_are(
    u_shape: bool, strategy: str, tmp_path: Path
) -> None:
    results = u_shaped(
        tmp_path,
        tail=partial(nn.Linear, 16, 4),
        strategy=strategy,
        **{"u-shaped": u_shape},
    )
    # at most 0.01 over ten seeds and two thread counts
    assert results["rounds"][4]["loss"] < 0.8 * results["rounds"][0]["loss"]
    assert all(row["accuracy"] is not None for row in results["rounds"])
    assert len(results["server half"]) == (3 if u_shape else 4)
    if strategy != "fedavg":
        assert ("output_codec" in results) == u_shape
        assert (results["traffic"]["train"]["uplink_bytes"]["labels"] == 0) == u_shape


def test_an_app_without_last_layers_cannot_be_u_shaped(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="u-shaped is true, but the app has no tail"):
        u_shaped(tmp_path, **{"u-shaped": True})


@pytest.mark.parametrize("strategy", ["split-learning", "fedavg"])
def test_devices_in_bfloat16(strategy: str, tmp_path: Path) -> None:
    """The layers compute in it; weights, and what goes to the server, are float32."""
    outputs = set()

    def record(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        outputs.add(output.dtype)

    head = DeviceHalf()
    head.layers[0].register_forward_hook(record)
    server_half = RecordingHalf()
    config = {
        "strategy": strategy,
        "num-devices": 3,
        "num-rounds": 6,
        "learning-rate": 1e-2,
        "device-precision": "bfloat16",
        "evaluate-on-devices": True,
        "results-dir": str(tmp_path),
    }
    adam = torch.optim.Adam
    server = SplitServerApp(DeviceHalf, lambda: server_half, CROSS_ENTROPY, adam)
    client = SplitClientApp(
        lambda: head, load_data, adam, server_model=ServerHalf, loss_fn=CROSS_ENTROPY
    )
    results = results_of(server, client, config, workers=0)
    # at most 0.15 over ten seeds and two thread counts
    assert results["rounds"][5]["loss"] < 0.8 * results["rounds"][0]["loss"]
    assert outputs == {torch.bfloat16}
    assert {weight.dtype for weight in head.parameters()} == {torch.float32}
    if strategy == "fedavg":
        assert not server_half.seen, "the whole model is on devices"
    else:
        assert server_half.seen == {torch.float32}


@pytest.mark.parametrize("strategy", ["split-learning", "fedavg"])
def test_an_accuracy_that_is_none_is_left_out(strategy: str, tmp_path: Path) -> None:
    adam = torch.optim.Adam
    honest = SplitClientApp(
        DeviceHalf, load_data, adam, server_model=ServerHalf, loss_fn=CROSS_ENTROPY
    )

    def client(message: Message, context: Context) -> Message:
        reply = honest(message, context)
        if message.metadata.message_type == "evaluate":
            accuracies = [0.5, float("nan"), 0.5]
            told = accuracies[context.node_config["partition-id"]]
            reply.content["metrics"]["eval_acc"] = told
        return reply

    server = SplitServerApp(DeviceHalf, ServerHalf, CROSS_ENTROPY, adam)
    config = {
        "strategy": strategy,
        "num-devices": 3,
        "num-rounds": 1,
        "evaluate-on-devices": True,
        "results-dir": str(tmp_path),
    }
    (row,) = results_of(server, client, config)["rounds"]
    assert row["accuracy"] == pytest.approx(0.5)


def test_float32_on_devices_is_what_no_key_is(tmp_path: Path) -> None:
    def digest(folder: str, **precision: str) -> str:
        bits = {"uplink_bits": 4.0, "downlink_bits": 4.0}
        return run(tmp_path / folder, **bits, **precision)["payload_digest"]

    without = digest("without")
    assert digest("float32", device_precision="float32") == without
    assert digest("bfloat16", device_precision="bfloat16") != without


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox", "fedadam"])
def test_unsplit_strategies_train_the_whole_model(
    strategy: str, tmp_path: Path
) -> None:
    config = {"strategy": strategy, "learning_rate": 1e-2, "num_rounds": 12}
    results = run(tmp_path, **config, evaluate_on_devices=True, evaluate_every=6)
    rounds = results["rounds"]
    evaluated = [row["round"] for row in rounds if row["device_accuracy"] is not None]
    assert evaluated == [6, 12]
    sent = [row["round"] for row in rounds if row["links"]["evaluate"]]
    assert sent == [6, 12]
    assert len(rounds[11]["links"]["evaluate"]) == 3
    # fedadam 0.07 to 0.66, the others less, over ten seeds and two thread counts
    assert rounds[11]["loss"] < rounds[0]["loss"]
    assert "codec" not in results
    assert "payload_digest" not in results
    model_bytes = sum(
        4 * weight.numel()
        for half in (DeviceHalf(), ServerHalf())
        for weight in half.parameters()
    )
    # six arrays, each with a header of NumPy's, a name, a shape and Flower's hashes
    assert 3 * model_bytes < rounds[0]["uplink_bytes"] < 3 * (model_bytes + 6 * 600)


class WithTable(DeviceHalf):
    """Has large numbers from the start, so that devices may reply with such."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.full((2,), 2e18))


WHOLE = SplitClientApp(
    WithTable,
    load_data,
    torch.optim.Adam,
    server_model=ServerHalf,
    loss_fn=CROSS_ENTROPY,
)


def whole_run(
    folder: Path, grid: LocalGrid, evaluate: Any = None, **config: Any
) -> dict[str, Any]:
    """The results.json of three rounds of a strategy of Flower's."""
    config = {"num-devices": 3, "num-rounds": 3, "results-dir": str(folder), **config}
    for context in grid.contexts.values():
        context.run_config = config
    server = SplitServerApp(
        WithTable,
        lambda context: ServerHalf(),
        CROSS_ENTROPY,
        torch.optim.Adam,
        evaluate=evaluate,
    )
    server(grid, Context(1, 1, {}, RecordDict(), config))
    return json.loads((folder / "results.json").read_text())


class MovingHalf(nn.Sequential):
    """Passes in training mode change its buffers, and no two are alike."""

    def __init__(self, dropout: float = 0.5) -> None:
        super().__init__(nn.BatchNorm2d(4), nn.Dropout(dropout), ServerHalf())


@pytest.mark.parametrize(
    "config",
    [
        {"strategy": "split-learning"},
        {"strategy": "split-learning", "replay-steps": 1},
        {"strategy": "split-learning", "decoupled": True},
        {"strategy": "splitfed-v1"},
        {"strategy": "fedavg"},
    ],
    ids=lambda config: "-".join(map(str, config.values())),
)
def test_what_evaluate_does_to_the_model_is_not_done_to_the_run(
    config: dict[str, Any], tmp_path: Path
) -> None:
    modes = set()

    def evaluate(model: nn.Module, context: Context) -> dict[str, float]:
        modes.update(part.training for part in model.modules())
        x, _ = TEST_SET
        alike = torch.equal(model(x), model(x))
        model.train()(100 * x)
        with torch.no_grad():
            for weight in model.parameters():
                weight.zero_()
        return {"accuracy": float(alike)}

    adam = torch.optim.Adam
    # The server replays while the device goes on, and torch's generator is one for all
    # threads of a process. Devices are in processes of their own otherwise.
    half = partial(MovingHalf, 0.0 if "replay-steps" in config else 0.5)
    head = {"auxiliary": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 4))}
    client = SplitClientApp(
        DeviceHalf, load_data, adam, server_model=half, loss_fn=CROSS_ENTROPY, **head
    )
    digests = []
    for name, function in (("without", None), ("with", evaluate)):
        server = SplitServerApp(
            DeviceHalf, half, CROSS_ENTROPY, adam, evaluate=function, **head
        )
        results = results_of(
            server,
            client,
            {"num-devices": 3, "results-dir": str(tmp_path / name), **config},
            workers=0,
        )
        digests.append(results.get("payload_digest"))
    assert modes == {False}
    assert [row["accuracy"] for row in results["rounds"]] == [1.0, 1.0, 1.0]
    assert digests[0] == digests[1]
    if config["strategy"] != "fedavg":
        assert same(joined(tmp_path / "without"), joined(tmp_path / "with"))


def test_a_half_that_cannot_be_copied_is_evaluated_itself(tmp_path: Path) -> None:
    def server_half(context: Context) -> nn.Module:
        with warnings.catch_warnings(action="ignore"):
            normed = nn.utils.weight_norm(nn.Linear(64, 4))
        return nn.Sequential(nn.Flatten(), normed, nn.Dropout())

    server = SplitServerApp(
        DeviceHalf,
        server_half,
        CROSS_ENTROPY,
        torch.optim.Adam,
        evaluate=lambda model, context: {"accuracy": float(model.server.training)},
    )
    client = SplitClientApp(DeviceHalf, load_data, torch.optim.Adam)
    config = {"num-devices": 3, "results-dir": str(tmp_path)}
    results = results_of(server, client, {**config, "strategy": "split-learning"})
    assert [row["accuracy"] for row in results["rounds"]] == [0.0, 0.0, 0.0]


def test_a_reply_that_flower_cannot_read_fails_its_device_alone(tmp_path: Path) -> None:
    results = whole_run(tmp_path, Wire(WHOLE, 3), strategy="fedavg")
    assert [list(row["failures"]) for row in results["rounds"]] == 3 * [["1"]]
    assert [row["steps"] for row in results["rounds"]] == 3 * [10]
    for row in results["rounds"]:
        assert "its reply cannot be read" in row["failures"]["1"]


class Large:
    """Device 1 replies with large numbers in round 1, finite ones."""

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self.name = name
        self.large = Array(np.full(shape, 3e38, np.float32))
        self.turns = 0

    def __call__(self, message: Message, context: Context) -> Message:
        reply = WHOLE(message, context)
        if context.node_config["partition-id"] == 1 and "arrays" in reply.content:
            self.turns += 1
            if self.turns == 1:
                reply.content["arrays"][self.name] = self.large
        return reply


@pytest.mark.parametrize(
    ("name", "shape", "failed", "why"),
    [
        ("device.layers.0.weight", (4, 1, 3, 3), ["1"], "an entry of 3e+38, beyond"),
        ("device.table", (2,), ["0", "1", "2"], "what FedAdam made of the devices' "),
    ],
)
def test_a_whole_model_survives_large_numbers(
    name: str, shape: tuple[int, ...], failed: list[str], why: str, tmp_path: Path
) -> None:
    """FedAdam squares them, and would move nothing any more.

    Its later rounds are in float64, which holds the squares.
    """
    after_round = []

    def evaluate(model: nn.Module, context: Context) -> dict[str, float]:
        after_round.append(weights(model))
        return {"accuracy": 0.5}

    grid = LocalGrid(Large(name, shape), 3)
    config = {"strategy": "fedadam", "max-failed-rounds": 2}
    results = whole_run(tmp_path, grid, evaluate, **config)
    assert [sorted(row["failures"]) for row in results["rounds"]] == [failed, [], []]
    for reason in results["rounds"][0]["failures"].values():
        assert why in reason
    *_, second, third = after_round
    weight = "device.layers.0.weight"
    assert not torch.equal(second[weight], third[weight])
    assert all(array.isfinite().all() for array in third.values())


def test_a_share_of_the_devices_and_steps_of_a_turn(tmp_path: Path) -> None:
    results = run(
        tmp_path, strategy="splitfed-v2", fraction_train=0.67, steps_per_turn=7
    )
    assert [row["steps"] for row in results["rounds"]] == 3 * [14]


def test_the_seed_decides_the_run(tmp_path: Path) -> None:
    first, again, other = (
        run(tmp_path / str(i), uplink_bits=2.0, seed=seed)
        for i, seed in enumerate((0, 0, 1))
    )
    assert first["payload_digest"] == again["payload_digest"] != other["payload_digest"]
    assert same(joined(tmp_path / "0"), joined(tmp_path / "1"))
    assert not same(joined(tmp_path / "0"), joined(tmp_path / "2"))


def test_initial_weights_follow_the_seed_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    for folder in ("0", "1"):
        run(
            tmp_path / folder,
            strategy="split-learning",
            num_rounds=1,
            learning_rate=0.0,
        )
        torch.rand(7)
    torch.set_rng_state(before)
    assert same(joined(tmp_path / "0"), joined(tmp_path / "1"))


def test_schedules_are_keys_and_device_sums_are_in_the_results(tmp_path: Path) -> None:
    bits = {"uplink_bits": 0.5, "downlink_bits": 0.5, "reduction": 2}
    results = run(
        tmp_path,
        **bits,
        uplink_schedule="linear 3x 1-3",
        downlink_schedule="warmup 2x 1",
    )
    # devices train in turn
    wanted = [(1.5, 1.0), (1.0, 0.5), (0.5, 0.5)]
    for number, (up, down) in enumerate(wanted):
        row = results["rounds"][number]
        trained = results["devices"][str(number)]
        assert 0.9 * up < row["uplink_bits_per_entry"] <= up
        assert row["uplink_bits_per_entry"] == trained["uplink_bits_per_entry"]
        assert 0.9 * down < row["downlink_bits_per_entry"] <= down
        assert row["downlink_bits_per_entry"] == trained["downlink_bits_per_entry"]
        assert (trained["sessions"], trained["steps"]) == (1, 5)


@pytest.mark.parametrize(
    ("budgets", "bits"),
    [("node-config", 0.4), ("", 0.5), ("throughput 9999s 0.1-0.9", 0.9)],
)
def test_where_device_budgets_come_from_is_a_key(
    budgets: str, bits: float, tmp_path: Path
) -> None:
    """The second turn, after which a throughput is known."""
    config = {
        "strategy": "splitfed-v2",
        "codec": "splitfc",
        "uplink_bits": 0.5,
        "reduction": 2,
        "num_rounds": 2,
    }
    results = run(
        tmp_path, **config, device_budgets=budgets, node_config={"uplink-bits": 0.4}
    )
    second = results["rounds"][1]
    assert 0.9 * bits < second["uplink_bits_per_entry"] <= bits


def test_the_optimizer_states_source_is_a_key(tmp_path: Path) -> None:
    losses = {}
    for state in ("", "relay", "per-device", "fresh"):
        results = run(
            tmp_path / (state or "own"),
            strategy="split-learning",
            learning_rate=1e-2,
            optimizer_state=state,
        )
        losses[state] = results["rounds"][2]["loss"]
    assert losses[""] == losses["relay"]
    assert losses["relay"] != losses["fresh"]


def test_a_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    settings = {
        "strategy": "split-learning",
        "checkpoint_dir": str(tmp_path / "checkpoint"),
    }
    run(tmp_path / "first", num_rounds=2, **settings)
    resumed = run(tmp_path / "resumed", num_rounds=4, **settings)
    whole = run(tmp_path / "whole", num_rounds=4, strategy="split-learning")
    assert resumed["payload_digest"] == whole["payload_digest"]
    assert same(joined(tmp_path / "resumed"), joined(tmp_path / "whole"))


@pytest.mark.parametrize(
    ("now", "why"),
    [
        ({"learning_rate": 1e-4}, "learning-rate '0.01', now '0.0001'"),
        ({"feature_clip_norm": 1.0}, r"defence .*, now .*clip_norm=1\.0"),
        ({"feature_clip_norm": 1.0, "feature_noise": 1.0}, r"defence .*noise=1\.0"),
        ({"nopeek": 0.5}, r"defence .*nopeek=0\.5"),
        ({"steps_per_turn": 2}, "steps-per-turn '0', now '2'"),
        ({"device_precision": "bfloat16"}, "device-precision 'float32'"),
    ],
)
def test_a_run_whose_devices_would_train_otherwise_does_not_go_on(
    now: dict[str, Any], why: str, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "strategy": "split-learning",
        "learning_rate": 1e-2,
        "checkpoint_dir": str(tmp_path / "checkpoint"),
    }
    run(tmp_path / "first", num_rounds=1, **settings)
    with pytest.raises(CheckpointError, match=f"of another run: .*{why}"):
        run(tmp_path / "second", num_rounds=2, **settings | now)


@pytest.mark.parametrize("strategy", ["split-learning", "fedavg"])
def test_a_rounds_timeout_is_a_key(strategy: str, tmp_path: Path) -> None:
    """The round ends without the device that never replies."""
    the_run_is_over = Event()

    def load(context: Context) -> Any:
        if context.node_config["partition-id"] == 1:
            the_run_is_over.wait()
        return load_data(context)

    config = {
        "strategy": strategy,
        "devices": "fedavg",
        "num-devices": 3,
        "num-rounds": 1,
        "round-timeout-s": 5,
        "results-dir": str(tmp_path),
    }
    adam = torch.optim.Adam
    server = SplitServerApp(DeviceHalf, ServerHalf, CROSS_ENTROPY, adam)
    client = SplitClientApp(
        DeviceHalf, load, adam, server_model=ServerHalf, loss_fn=CROSS_ENTROPY
    )
    results = results_of(server, client, config, workers=3)
    the_run_is_over.set()
    assert results["rounds"][0]["steps"] == 10


def run_without_pictures(folder: Path, **config: Any) -> None:
    def load(context: Context) -> Any:
        raise FileNotFoundError("no pictures here")

    adam = torch.optim.Adam
    server = SplitServerApp(DeviceHalf, ServerHalf, CROSS_ENTROPY, adam)
    client = SplitClientApp(
        DeviceHalf, load, adam, server_model=ServerHalf, loss_fn=CROSS_ENTROPY
    )
    results_of(server, client, {"results-dir": str(folder), "num-devices": 3, **config})


@pytest.mark.parametrize("strategy", ["splitfc", "splitfed-v1", "fedavg"])
def test_a_run_in_which_every_device_fails_says_so_and_leaves_no_model(
    strategy: str, tmp_path: Path
) -> None:
    config = {"strategy": strategy, "num-rounds": 9, "max-failed-rounds": 2}
    with pytest.raises(RunFailed, match="FileNotFoundError: no pictures here"):
        run_without_pictures(tmp_path, **config)
    assert [path.name for path in tmp_path.glob("[!.]*")] == ["results.json"]
    written = json.loads((tmp_path / "results.json").read_text())
    assert "FileNotFoundError: no pictures here" in written["failed"]
    # two turns of each device
    rounds = 6 if strategy == "splitfc" else 2
    assert len(written["rounds"]) == rounds
    assert all(row["failures"] for row in written["rounds"])


@pytest.mark.parametrize("strategy", ["splitfed-v2", "fedavg"])
def test_a_run_in_which_nothing_was_trained_is_not_finished(
    strategy: str, tmp_path: Path
) -> None:
    """Fewer rounds than may fail in a row."""
    config = {"strategy": strategy, "num-rounds": 2, "max-failed-rounds": 9}
    with pytest.raises(RunFailed, match=r"nothing was trained: .*no pictures here"):
        run_without_pictures(tmp_path, **config)
    assert [path.name for path in tmp_path.glob("[!.]*")] == ["results.json"]


def test_no_batch_is_larger_than_the_run_config_says(tmp_path: Path) -> None:
    """A device that sends more samples fails; a limit of its own wins."""
    settings = {"strategy": "split-learning", "num_rounds": 1, "batch_size": 4}
    with pytest.raises(RunFailed, match="samples, at most 4"):
        run(tmp_path / "limited", **settings)
    free = run(tmp_path / "free", split_max_train_rows=64, **settings)
    assert free["rounds"][0]["failures"] == {}


def test_other_options_reach_the_strategy(tmp_path: Path) -> None:
    sgd = partial(torch.optim.SGD, lr=0.1)
    for name, options in (("free", {}), ("clipped", {"max_grad_norm": 1e-9})):
        run(
            tmp_path / name,
            strategy="split-learning",
            num_rounds=1,
            optimizer=sgd,
            evaluate=None,
            **options,
        )
    moved = [
        joined(tmp_path / name)["server.layers.3.weight"]
        for name in ("free", "clipped")
    ]
    assert not torch.allclose(*moved, atol=1e-4)


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        (
            "strategy",
            "fedsgd",
            "strategy is 'fedsgd', wanted one of splitfc, split-learning, splitfed-v1",
        ),
        (
            "devices",
            "alphabetical",
            "devices is 'alphabetical', wanted one of round-robin, fedavg",
        ),
        ("optimizer_state", "gone", "optimizer-state is 'gone', wanted one of "),
        ("num_rounds", 0, "num-rounds is 0, wanted 1 or more"),
        ("num_rounds", 2.5, "num-rounds is 2.5, wanted int"),
        ("num_rounds", True, "num-rounds is True, wanted int"),
        ("num_devices", 0, "num-devices is 0"),
        ("evaluate_every", 0, "evaluate-every is 0"),
        ("max_failed_rounds", 0, "max-failed-rounds is 0, wanted 1 or more"),
        ("target_accuracy", 90.0, "target-accuracy is 90.0, wanted 0 to 1, such as"),
        ("stop_patience", -1, "stop-patience is -1, wanted 0 or more"),
        ("best_metric", "loss", "best-metric: 'loss' is no metric, wanted such as"),
        ("keep_best", 1, "keep-best is 1, wanted bool"),
        ("steps_per_turn", -1, "steps-per-turn is -1, wanted 0 or more"),
        ("torch_threads", 0, "torch-threads is 0"),
        (
            "device_precision",
            "float16",
            "device-precision is 'float16', wanted one of float32, bfloat16",
        ),
        ("u_shaped", 1, "u-shaped is 1, wanted bool"),
        ("learning_rate", "1e-3", "learning-rate is '1e-3', wanted float"),
        ("learning_rate", -1.0, "learning-rate is -1.0, wanted 0.0 or more"),
        ("learning_rate", float("nan"), "learning-rate is nan"),
        ("learning_rate", float("inf"), "learning-rate is inf, wanted a finite number"),
        (
            "fraction_train",
            0,
            "fraction-train is 0.0, wanted more than 0 and at most 1",
        ),
        ("fraction_train", 1.5, "fraction-train is 1.5"),
        ("evaluate_on_devices", 1, "evaluate-on-devices is 1, wanted bool"),
        ("round_timeout_s", 0, "round-timeout-s is 0.0, wanted more than 0"),
        ("round_timeout_s", float("inf"), "round-timeout-s is inf, .* and finite"),
        ("batch_size", 0, "batch-size is 0, wanted 1 or more"),
        ("batch_size", "a", "batch-size is 'a', wanted int"),
        ("server_device", "cuda:99", "server-device is 'cuda:99', wanted names of"),
        ("results_dir", "", "results-dir is '', wanted a folder"),
        ("seed", "0", "seed is '0', wanted int"),
        ("results_dir", 3, "results-dir is 3, wanted str"),
        (
            "device_budgets",
            "best",
            "device-budgets is 'best', wanted 'node-config', 'throughput 0.05s'",
        ),
        (
            "device_budgets",
            "throughput 1s 9-3",
            "device-budgets is 'throughput 1s 9-3': least_bits is 9.0",
        ),
        ("uplink_schedule", "4x", "uplink-schedule is '4x', wanted 'warmup 4x 20'"),
        ("downlink_schedule", 4.0, "downlink-schedule is 4.0, wanted str"),
        ("uplink_bits", "few", "uplink-bits: uplink_bits must be float, got 'few'"),
        ("reduction", 0.5, "reduction: reduction"),
        ("feature_noise", 0.1, "feature-clip-norm, feature-noise and nopeek: noise is"),
        (
            "split_transport",
            "message",
            "split-transport: transport is 'message', wanted one of stream, messages",
        ),
        ("codec", "no-such-codec", "codec is 'no-such-codec', and strategy is"),
        ("codec_settings", 8, "codec-settings is 8, wanted str"),
        ("codec_settings", "reduction", "codec-settings: a setting is key=value"),
        ("codec_settings", "seed=3", "codec 'splitfc-rd' has no setting 'seed'"),
        ("codec_settings", "reduction=0.5", "reduction"),
    ],
)
def test_keys_that_are_wrong_are_named(
    key: str, value: Any, error: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=error):
        run(tmp_path, **{key: value})
