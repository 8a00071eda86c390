"""A ServerApp from two halves and a run-config: what it trains, what it writes, which keys it refuses."""

import json
import re
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, RecordDict
from torch import nn

from flwr_splitfc import HeadAndTail, JoinedModel, SplitClientApp, SplitServerApp
from flwr_splitfc.apps.run_codecs import codec_of, output_codec_of
from flwr_splitfc.apps.run_settings import RunSettings
from tests.halves import DeviceHalf, ServerHalf, batches, same
from tests.local_grid import LocalGrid

CROSS_ENTROPY = nn.CrossEntropyLoss()
TEST_SET = batches(1, rows=200, seed=99)[0]


def load_data(context: Context) -> Any:
    data = batches(5, rows=64, seed=context.node_config["partition-id"])
    return data, data


def accuracy(model: nn.Module, context: Context) -> dict[str, float]:
    x, y = TEST_SET
    with torch.no_grad():
        return {"accuracy": (model.eval()(x).argmax(1) == y).float().mean().item()}


def run(
    folder: Path,
    *,
    optimizer: Any = torch.optim.Adam,
    node_config: dict[str, Any] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """The results.json of a run over three devices; `options` are the run-config's, in snake case, or the app's."""
    app_options = {
        key: options.pop(key) for key in ("evaluate", "max_grad_norm") if key in options
    }
    config = {"num-devices": 3, "results-dir": str(folder)}
    config |= {key.replace("_", "-"): value for key, value in options.items()}
    server = SplitServerApp(
        DeviceHalf,
        lambda context: ServerHalf(),
        CROSS_ENTROPY,
        optimizer,
        **{"evaluate": accuracy, **app_options},
    )
    client = SplitClientApp(
        DeviceHalf, load_data, optimizer, server_model=ServerHalf, loss_fn=CROSS_ENTROPY
    )
    grid = LocalGrid(client, 3, workers=1)
    for context in grid.contexts.values():
        context.node_config.update(node_config or {})
    server(grid, Context(1, 1, {}, RecordDict(), config))
    return json.loads((folder / "results.json").read_text())


def joined(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "joined.pt", weights_only=True)


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
        **{"name": "splitfc", "uplink-bits": 2.0, "downlink-bits": 2.0},
        **{"evaluation": "float16", "reduction": 16.0},
    }
    assert results["seed"] == 0
    assert results["run_config"] == {
        **{"num-devices": 3, "results-dir": str(tmp_path)},
        **{"uplink-bits": 2.0, "downlink-bits": 2.0},
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
    assert rounds[8]["loss"] < 0.8 * rounds[0]["loss"]


@pytest.mark.parametrize(
    ("strategy", "devices", "round_trips"),
    [
        ("split-learning", ["0"], 5 + 2 + 1),
        ("splitfed-v2", ["0", "1", "2"], 5 + 2 + 1),
        ("fedavg", ["0", "1", "2"], 1),
    ],
)
def test_a_rounds_row_has_what_crossed_each_devices_link(
    tmp_path: Path, strategy: str, devices: list[str], round_trips: int
) -> None:
    """Five steps, Open, Close and Flower's message; without a cut the message alone."""
    (row,) = run(tmp_path, strategy=strategy, num_rounds=1, evaluate_on_devices=True)[
        "rounds"
    ]
    links = row["links"]
    assert sorted(links["train"]) == devices
    assert {moved[2] for moved in links["train"].values()} == {round_trips}
    assert sorted(links["evaluate"]) == ["0", "1", "2"]
    moved = [each for purpose in links.values() for each in purpose.values()]
    assert [sum(column) for column in zip(*moved, strict=True)][:2] == [
        row["uplink_bytes"],
        row["downlink_bytes"],
    ]


def test_devices_evaluate_with_features_coded_as_for_inference(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "flwr")

    def rows(folder: str, **options: Any) -> list[dict[str, Any]]:
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
        return run(tmp_path / folder, **config, **cut, **options)["rounds"]

    exact = rows("exact", evaluation="float32")
    coded = rows("coded", evaluation="codec", evaluation_bits=0.3)
    alone = rows("alone", evaluation="float32", evaluate=None)
    assert [row["accuracy"] for row in coded] == [row["accuracy"] for row in exact], (
        "training is the same"
    )
    assert coded[-1]["device_accuracy"] < exact[-1]["device_accuracy"] > 0.8
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

    adam, tail = torch.optim.Adam, partial(nn.Linear, 16, 4)
    output = {
        "output-codec": "splitfc",
        "output-downlink-bits": 5.0,
        "output-uplink-bits": 4.0,
        "output-reduction": 2,
    }
    cut = {"uplink-bits": 2.0, "downlink-bits": 2.0}
    config = {
        "strategy": strategy,
        "num-devices": 3,
        "num-rounds": 5,
        "learning-rate": 1e-2,
        **cut,
        **output,
    }
    config |= {
        "evaluate-on-devices": True,
        "steps-per-turn": 20,
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
    server(LocalGrid(client, 3, workers=1), Context(1, 1, {}, RecordDict(), config))
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["rounds"][4]["loss"] < 0.8 * results["rounds"][0]["loss"]
    assert all(row["accuracy"] is not None for row in results["rounds"])
    if strategy == "fedavg":
        return
    traffic, settings = results["traffic"]["train"], results["output_codec"]
    assert (settings["name"], settings["downlink-bits"], settings["uplink-bits"]) == (
        "splitfc",
        5.0,
        4.0,
    )
    assert (
        2 * traffic["output_entries"]
        < 8 * traffic["downlink_bytes"]["output"]
        <= 5 * traffic["output_entries"]
    )
    assert (
        0
        < 8 * traffic["uplink_bytes"]["output_gradient"]
        <= 4 * traffic["output_entries"]
    )
    JoinedModel(HeadAndTail(DeviceHalf(), tail()), middle()).load_state_dict(
        joined(tmp_path)
    )
    assert not (tmp_path / "unsplit.pt").exists()


class RecordingHalf(ServerHalf):
    """Knows the types of the features that came."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.add(x.dtype)
        return super().forward(x)


def u_shaped(folder: Path, *, tail: Any = None, **config: Any) -> dict[str, Any]:
    """The results.json of an app whose server half keeps its last layer unless the run-config is u-shaped."""
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
        **config,
    }
    config |= {"results-dir": str(folder), "evaluate-on-devices": True}
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
    grid = LocalGrid(client, 3, workers=1)
    for context in grid.contexts.values():
        context.run_config = config
    server(grid, Context(1, 1, {}, RecordDict(), config))
    return {**json.loads((folder / "results.json").read_text()), "server half": made[0]}


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
    head, outputs = DeviceHalf(), set()
    head.layers[0].register_forward_hook(
        lambda module, inputs, output: outputs.add(output.dtype)
    )
    server_half = RecordingHalf()
    config = {
        "strategy": strategy,
        "num-devices": 3,
        "num-rounds": 6,
        "learning-rate": 1e-2,
    }
    config |= {
        "device-precision": "bfloat16",
        "evaluate-on-devices": True,
        "results-dir": str(tmp_path),
    }
    adam = torch.optim.Adam
    server = SplitServerApp(DeviceHalf, lambda: server_half, CROSS_ENTROPY, adam)
    client = SplitClientApp(
        lambda: head, load_data, adam, server_model=ServerHalf, loss_fn=CROSS_ENTROPY
    )
    server(LocalGrid(client, 3, workers=0), Context(1, 1, {}, RecordDict(), config))
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["rounds"][5]["loss"] < 0.8 * results["rounds"][0]["loss"]
    assert outputs == {torch.bfloat16}
    assert {weight.dtype for weight in head.parameters()} == {torch.float32}
    assert server_half.seen == (set() if strategy == "fedavg" else {torch.float32})


def test_float32_on_devices_is_what_no_key_is(tmp_path: Path) -> None:
    first, same_run, other = (
        run(tmp_path / str(number), uplink_bits=4.0, downlink_bits=4.0, **precision)
        for number, precision in enumerate(
            ({}, {"device_precision": "float32"}, {"device_precision": "bfloat16"}),
        )
    )
    assert (
        first["payload_digest"] == same_run["payload_digest"] != other["payload_digest"]
    )


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox", "fedadam"])
def test_unsplit_strategies_train_the_whole_model(
    strategy: str, tmp_path: Path
) -> None:
    config = {"strategy": strategy, "learning_rate": 1e-2, "num_rounds": 4}
    results = run(tmp_path, **config, evaluate_on_devices=True, evaluate_every=2)
    rounds = results["rounds"]
    assert [row["device_accuracy"] is None for row in rounds] == [
        True,
        False,
        True,
        False,
    ]
    assert [len(row["links"]["evaluate"]) for row in rounds] == [0, 3, 0, 3]
    assert rounds[3]["loss"] < rounds[0]["loss"]
    assert "codec" not in results
    assert "payload_digest" not in results
    model_bytes = sum(
        4 * weight.numel()
        for half in (DeviceHalf(), ServerHalf())
        for weight in half.parameters()
    )
    # six arrays, each with a header
    assert 3 * model_bytes < rounds[0]["uplink_bytes"] < 3 * (model_bytes + 6 * 150)


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
    wanted = [(1.5, 1.0), (1.0, 0.5), (0.5, 0.5)]
    # in turn
    for row, device, (up, down) in zip(
        results["rounds"], ("0", "1", "2"), wanted, strict=True
    ):
        trained = results["devices"][device]
        assert (
            0.9 * up
            < row["uplink_bits_per_entry"]
            == trained["uplink_bits_per_entry"]
            <= up
        )
        assert (
            0.9 * down
            < row["downlink_bits_per_entry"]
            == trained["downlink_bits_per_entry"]
            <= down
        )
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
    rounds = run(
        tmp_path, **config, device_budgets=budgets, node_config={"uplink-bits": 0.4}
    )["rounds"]
    assert 0.9 * bits < rounds[1]["uplink_bits_per_entry"] <= bits


def test_the_optimizer_states_source_is_a_key(tmp_path: Path) -> None:
    losses = {
        state: run(
            tmp_path / (state or "own"),
            strategy="split-learning",
            learning_rate=1e-2,
            optimizer_state=state,
        )["rounds"][2]["loss"]
        for state in ("", "relay", "per-device", "fresh")
    }
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
        (
            "fraction_train",
            0,
            "fraction-train is 0.0, wanted more than 0 and at most 1",
        ),
        ("fraction_train", 1.5, "fraction-train is 1.5"),
        ("evaluate_on_devices", 1, "evaluate-on-devices is 1, wanted bool"),
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
        ("uplink_bits", "few", "uplink_bits must be float, got 'few'"),
        ("reduction", 0.5, "reduction"),
        ("codec_settings", 8, "codec-settings is 8, wanted str"),
        ("codec_settings", "reduction", "codec-settings: a setting is key=value"),
        ("codec_settings", "seed=3", "codec 'splitfc' has no setting 'seed'"),
        ("codec_settings", "reduction=0.5", "reduction"),
    ],
)
def test_keys_that_are_wrong_are_named(
    key: str, value: Any, error: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=error):
        run(tmp_path, **{key: value})


def test_a_codec_takes_its_own_settings_and_no_others() -> None:
    config = {
        "strategy": "split-learning",
        "uplink-bits": 0.5,
        "reduction": 4,
        "evaluation": "float32",
        "batch-size": 9,
    }
    assert codec_of(config).config()["name"] == "float32"
    assert "reduction" not in codec_of(config).config()
    cut = codec_of({**config, "codec": "dropout-only", "channel-dim": 2})
    assert cut.config() == {
        **{"name": "dropout-only", "uplink-bits": 0.5, "downlink-bits": 0.4},
        **{"evaluation": "float32", "channel-dim": 2, "reduction": 4.0},
    }
    assert (
        codec_of({**config, "strategy": "splitfc", "codec": "float16"}).config()["name"]
        == "splitfc"
    )
    with pytest.raises(ValueError, match="unknown codec 'gzip'; known are"):
        codec_of({**config, "codec": "gzip"})


def test_a_codecs_settings_in_one_string() -> None:
    config = {"strategy": "split-learning", "codec": "fedlite", "uplink-bits": 0.5}
    text = "groups=2 correction=0.1 downlink-bits=0.25"
    assert codec_of({**config, "codec-settings": text}) == codec_of(
        {**config, "groups": 2, "correction": 0.1, "downlink-bits": 0.25}
    )
    assert codec_of({**config, "codec-settings": ""}) == codec_of(config)
    output = {"output-codec": "dropout-only", "output-codec-settings": "reduction=4"}
    assert output_codec_of({**config, **output}).config()["reduction"] == 4.0


def test_a_run_is_the_same_however_its_codecs_settings_are_given(
    tmp_path: Path,
) -> None:
    cut = {"uplink_bits": 2.0, "downlink_bits": 2.0}
    by_keys = run(tmp_path / "keys", num_rounds=1, reduction=4, **cut)
    in_a_string = run(
        tmp_path / "string", num_rounds=1, codec_settings="reduction=4", **cut
    )
    assert by_keys["codec"] == in_a_string["codec"]
    assert by_keys["payload_digest"] == in_a_string["payload_digest"]


@pytest.mark.parametrize("prefix", ["", "output-"])
@pytest.mark.parametrize("word", ["reduction", "uplink-bits", "uplink_bits"])
def test_a_setting_that_is_given_twice_is_named_with_both_places(
    prefix: str, word: str
) -> None:
    key = prefix + word.replace("_", "-")
    text = f"channel-dim=2 {word}=4"
    config = {
        "strategy": "split-learning",
        f"{prefix}codec": "dropout-only",
        f"{prefix}codec-settings": text,
        key: 2.0,
    }
    said = f"{word} is given twice: by {key} = 2.0 and by {prefix}codec-settings = "
    with pytest.raises(ValueError, match=re.escape(said + repr(text))):
        output_codec_of(config) if prefix else codec_of(config)
    twice = {**config, f"{prefix}codec-settings": "channel-dim=2 channel_dim=2"}
    with pytest.raises(ValueError, match="channel_dim is given twice"):
        output_codec_of(twice) if prefix else codec_of(twice)


def documented_defaults() -> dict[str, str]:
    """The table of keys in the docstring: by key, its default as it is written there."""
    assert SplitServerApp.__doc__ is not None
    _, _, table = SplitServerApp.__doc__.partition("key  ")
    return dict(re.findall(r"^ *``([a-z-]+)``  *(\S+)", table, re.M))


@pytest.mark.parametrize("field", fields(RunSettings), ids=lambda field: field.name)
def test_every_key_is_in_the_apps_table_with_its_default(field: Any) -> None:
    written = documented_defaults()[field.name.replace("_", "-")]
    if field.default is None:
        assert written == "`optimizer`'s"
    else:
        assert json.loads(written) == field.default


def test_every_key_in_the_apps_table_is_understood() -> None:
    known = {field.name.replace("_", "-") for field in fields(RunSettings)}
    codecs = {"codec", "codec-settings", "output-codec", "output-codec-settings"}
    assert documented_defaults().keys() == known | codecs
