"""Budgets by device and round: each device's bytes keep to its own, and one that asks for nonsense fails alone."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import FedAvg
from torch import nn

from flwr_splitfc import (
    BudgetSchedule,
    EndpointConfig,
    HeadAndTail,
    NodeConfigBudgets,
    RoundRobin,
    SplitClientApp,
    SplitFC,
    SplitLearning,
    ThroughputBudgets,
    cut_codec,
)
from flwr_splitfc.exchange import BudgetRule, DeviceRound, LastTurn
from flwr_splitfc.exchange.server.accounts.budget_rules import budgeted, rules_text
from flwr_splitfc.strategy.budgets import budget_rules
from tests.cutting_proxy import CuttingProxy
from tests.halves import batches, seeded
from tests.local_grid import LocalGrid
from tests.processes.processes import free_port

ADAM = partial(torch.optim.Adam, lr=1e-2)
CROSS_ENTROPY = nn.CrossEntropyLoss()
BUDGETS = {"0": (0.1, 0.2), "1": (0.2, 0.4), "2": (0.8, 0.4)}
ROWS = 128


class DeviceHalf(nn.Sequential):
    """256 columns: wide enough for a tenth of a bit."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))


def server_half() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, 4))


def middle() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 256), nn.ReLU())


def load_data(context: Any) -> Any:
    data = batches(3, rows=ROWS, seed=context.node_config["partition-id"])
    return data, data


def app(**options: Any) -> SplitClientApp:
    return SplitClientApp(DeviceHalf, load_data, ADAM, **options)


def everyone() -> FedAvg:
    return FedAvg(min_available_nodes=3, min_train_nodes=3, fraction_evaluate=0.0)


def run(
    rounds: int = 2,
    configs: Sequence[dict[str, Any]] = (),
    client: SplitClientApp | None = None,
    device: Callable[[], nn.Module] = DeviceHalf,
    **options: Any,
) -> SplitFC:
    """The strategy after a run over three devices, of which the first ones' node configs get `configs`."""
    options = {
        "server_model": seeded(server_half),
        "loss_fn": CROSS_ENTROPY,
        "devices": everyone(),
        **options,
    }
    strategy = SplitFC(optimizer=ADAM, reduction=8, device="cpu", **options)
    grid = LocalGrid(client or app(), 3)
    for context, config in zip(grid.contexts.values(), configs, strict=False):
        context.node_config.update(config)
    strategy.start(grid, ArrayRecord(seeded(device).state_dict()), rounds)
    return strategy


def by_name(device: DeviceRound) -> tuple[float, float]:
    return BUDGETS[device.name]


def meets(strategy: SplitLearning, budgets: dict[str, tuple[float, float]]) -> bool:
    trained = strategy.ledger.devices("train")
    measured = {
        name: (t.uplink_bits_per_entry, t.downlink_bits_per_entry)
        for name, t in trained.items()
    }
    return measured.keys() == budgets.keys() and all(
        0.9 * asked < got <= asked
        for name in budgets
        for got, asked in zip(measured[name], budgets[name], strict=True)
    )


# -- one run, three budgets
# ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "devices",
    [everyone, partial(RoundRobin, min_available_nodes=3)],
    ids=["parallel", "turns"],
)
def test_each_device_meets_its_own_budget(devices: Callable[[], Any]) -> None:
    """Evaluation, which sends float16, does not blur it."""
    strategy = run(rounds=3, budgets=by_name, devices=devices())
    assert meets(strategy, BUDGETS)
    assert not any(row["failures"] for row in strategy.progress.rows)


def test_a_node_config_that_names_a_budget_means_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    configs = [{"uplink-bits": 0.1}, {"uplink-bits": 0.8, "downlink-bits": 1}, {}]
    with caplog.at_level("DEBUG", "flwr"):
        strategy = run(configs=configs)
    assert meets(strategy, {"0": (0.1, 0.4), "1": (0.8, 1.0), "2": (0.2, 0.4)})
    measured = strategy.ledger.devices("train")["0"].uplink_bits_per_entry
    assert (
        f"Device 0: 2 sessions, 6 steps, bits/entry up {measured:.3f} down"
        in caplog.text
    )
    assert meets(run(configs=configs, budgets=()), dict.fromkeys("012", (0.2, 0.4)))


def test_both_cuts_of_a_u_shaped_model_have_their_own() -> None:
    tail = partial(nn.Linear, 256, 4)
    strategy = run(
        configs=[
            {"uplink-bits": 0.1, "output-downlink-bits": 0.8},
            {"output-uplink-bits": 0.1},
            {},
        ],
        client=app(tail=tail, loss_fn=CROSS_ENTROPY),
        device=lambda: HeadAndTail(DeviceHalf(), tail()),
        server_model=seeded(middle),
        loss_fn=None,
        output_codec=cut_codec(
            "splitfc", uplink_bits=0.3, downlink_bits=0.5, reduction=8
        ),
    )
    assert meets(strategy, {"0": (0.1, 0.4), "1": (0.2, 0.4), "2": (0.2, 0.4)})
    wanted = {"0": (0.3, 0.8), "1": (0.1, 0.5), "2": (0.3, 0.5)}
    for name, traffic in strategy.ledger.devices("train").items():
        up, down = wanted[name]
        assert 0.9 * up < traffic.uplink_output_bits_per_entry <= up
        assert 0.9 * down < traffic.downlink_output_bits_per_entry <= down


@pytest.mark.parametrize(
    "value", [0, -0.1, math.nan, math.inf, 33, 10**15, "0.1", "x" * 5000, True]
)
def test_a_device_that_asks_for_nonsense_fails_alone(value: Any) -> None:
    strategy = run(configs=[{}, {"downlink-bits": value}], model_bits=32)
    for row in strategy.progress.rows:
        assert list(row["failures"]) == ["1"]
        assert row["failures"]["1"].startswith(
            f"no budget: NodeConfigBudgets(): downlink-bits is {value!r:.50}"
        )
        assert row["failures"]["1"].endswith("wanted a number above 0 and at most 32")
        assert row["steps"] == 6
    half = ArrayRecord(DeviceHalf().state_dict())
    sent = strategy.ledger.total("train").downlink_bytes["model"]
    # two rounds, the other two devices
    assert sent == 2 * 2 * sum(len(array.data) for array in half.values())
    assert meets(strategy, dict.fromkeys("02", (0.2, 0.4)))


def test_a_budget_in_a_node_config_that_is_written_with_underscores_is_told() -> None:
    device = DeviceRound("3", 1, 0.2, 0.4, node_config={"uplink_bits": 0.1})
    with pytest.raises(ValueError, match="has 'uplink_bits': write uplink-bits"):
        NodeConfigBudgets()(device)


def test_a_node_config_without_end_is_not_kept() -> None:
    seen: list[Any] = []
    strategy = run(
        rounds=1,
        configs=[{f"key-{i}": "x" * 10_000 for i in range(1000)}],
        budgets=seen.append,
    )
    config = next(device for device in seen if device.name == "0").node_config
    assert len(config) <= 64
    assert all(len(str(value)) <= 1000 for value in config.values())
    assert strategy.progress.rows[0]["failures"] == {}


@pytest.mark.parametrize(
    "bits", [(0.1,), (0.1, math.nan), (0.1, "0.2"), 0.1, (0, 0.1), (33.0, 0.1)]
)
def test_a_rule_that_gives_no_budget_fails_the_device_by_the_rules_name(
    bits: Any,
) -> None:
    def mine(device: DeviceRound) -> Any:
        return bits if device.name == "1" else None

    strategy = run(rounds=1, budgets=mine)
    assert (
        f"mine gave {bits!r}, wanted two numbers above 0"
        in strategy.progress.rows[0]["failures"]["1"]
    )
    assert strategy.progress.rows[0]["steps"] == 6


def test_a_rule_that_stumbles_over_a_device_does_not_end_the_run() -> None:
    def mine(device: DeviceRound) -> tuple[float, float]:
        return 0.2, 0.4 / int(device.name)

    strategy = run(rounds=1, budgets=mine)
    assert list(strategy.progress.rows[0]["failures"]) == ["0"]
    assert "mine: ZeroDivisionError" in strategy.progress.rows[0]["failures"]["0"]


def test_a_budget_too_small_names_the_device_and_the_smallest_that_works() -> None:
    strategy = run(configs=[{}, {}, {"uplink-bits": 0.001}])
    for row in strategy.progress.rows:
        assert list(row["failures"]) == ["2"]
        least = cut_codec("splitfc", reduction=8).smallest_bits(ROWS, 256)[0]
        assert row["failures"]["2"].endswith(
            f"too small for 128 x 256; the smallest that works is {least}"
        )
        assert row["steps"] == 6


def test_budgets_beyond_float32_are_left_to_the_codec_alone() -> None:
    """Other codecs may use them, and rules that leave them are no reason to fail."""
    codec = cut_codec("quant-only", uplink_bits=40.0, downlink_bits=40.0)
    device = DeviceRound("3", 9, 40.0, 40.0, node_config={"downlink-bits": 1})
    given = budgeted(
        codec,
        [NodeConfigBudgets(), BudgetSchedule("warmup 4x 2", "warmup 4x 9")],
        device,
    )
    assert (given.uplink_bits, given.downlink_bits) == (40.0, 4.0)


# -- schedules
# -----------------------------------------------------------------------------------


SCHEDULES = {
    "": [1, 1, 1, 1, 1],
    "warmup 4x 2": [4, 4, 1, 1, 1],
    "warmup 0.5x 1": [0.5, 1, 1, 1, 1],
    "linear 5x 1-5": [5, 4, 3, 2, 1],
    "linear 3x 2-4": [3, 3, 2, 1, 1],
    "geometric 16x 1-5": [16, 8, 4, 2, 1],
    "geometric 0.25x 2-4": [0.25, 0.25, 0.5, 1, 1],
    "geometric 1.5x 2-3": [1.5, 1.5, 1, 1, 1],
}


@pytest.mark.parametrize(("text", "factors"), SCHEDULES.items())
def test_schedules(text: str, factors: list[float]) -> None:
    for direction in ("uplink", "downlink"):
        rule = BudgetSchedule(**{direction: text})
        for server_round, factor in enumerate(factors, 1):
            bits = rule(DeviceRound("3", server_round, 0.2, 0.2))
            assert bits == pytest.approx(
                (0.2 * factor, 0.2) if direction == "uplink" else (0.2, 0.2 * factor)
            )


def test_a_schedule_never_asks_for_more_than_float32() -> None:
    assert BudgetSchedule("warmup 1000x 1", "warmup 1000x 1")(
        DeviceRound("3", 1, 0.2, 0.4)
    ) == (32.0, 32.0)


WRONG = [
    "warmup",
    "warmup 4 20",
    "warmup 4x",
    "warmup 4x 1-20",
    "linear 4x 20",
    "linear 4x 20-5",
    "linear 4x 5-5",
]
WRONG += [
    "linear 0x 1-5",
    "cosine 4x 1-5",
    "linear -4x 1-5",
    "linear nanx 1-5",
    "linear 1e9x 1-5",
    "linear  4x 1-5",
]
WRONG += ["linear 4x 1-5 ", "warmup 4x ٢", f"warmup {'9' * 400}x 1", "warmup 4.x 1"]


@pytest.mark.parametrize("text", WRONG)
def test_schedules_that_are_none(text: str) -> None:
    with pytest.raises(
        ValueError, match=r"uplink-schedule is .*, wanted 'warmup 4x 20'"
    ):
        BudgetSchedule(text)


def test_a_schedule_multiplies_what_each_device_gets() -> None:
    """Round by round, as the ledger measured it."""
    strategy = run(
        rounds=4,
        configs=[{"uplink-bits": 0.1}, {"uplink-bits": 0.2}, {"uplink-bits": 0.8}],
        budgets=(NodeConfigBudgets(), BudgetSchedule(uplink="geometric 4x 1-3")),
        devices=RoundRobin(min_available_nodes=3, fraction_evaluate=0.0),
    )
    # devices 0, 1, 2, 0
    for row, bits in zip(strategy.progress.rows, (0.4, 0.4, 0.8, 0.1), strict=True):
        assert 0.9 * bits < row["uplink_bits_per_entry"] <= bits
        assert 0.36 < row["downlink_bits_per_entry"] <= 0.4


def test_a_resumed_run_goes_on_with_its_schedule(tmp_path: Path) -> None:
    """The same payloads and device sums as an undisturbed one; other rules are another run."""

    def part(folder: Path | None, rounds: int, budgets: Any = None) -> SplitFC:
        rules = budgets or (by_name, BudgetSchedule("geometric 8x 1-4", "warmup 2x 3"))
        turns = RoundRobin(min_available_nodes=3, fraction_evaluate=0.0)
        return run(rounds, budgets=rules, devices=turns, checkpoint=folder)

    whole = part(None, 5)
    part(tmp_path, 2)
    part(tmp_path, 3)
    resumed = part(tmp_path, 5)
    assert resumed.ledger.digest() == whole.ledger.digest()
    for name, traffic in whole.ledger.devices("train").items():
        again = resumed.ledger.devices("train")[name]
        assert (again.uplink_bytes, again.entries) == (
            traffic.uplink_bytes,
            traffic.entries,
        )
    with pytest.raises(
        ValueError, match=r"is of another run: budgets .by_name, BudgetSchedule"
    ):
        part(tmp_path, 6, budgets=by_name)


# -- throughput
# ----------------------------------------------------------------------------------


def test_a_rule_learns_what_the_last_turn_was() -> None:
    seen: list[DeviceRound] = []

    def watch(device: DeviceRound) -> None:
        seen.append(device)

    run(
        rounds=2,
        budgets=(by_name, watch),
        devices=RoundRobin(min_available_nodes=1, fraction_evaluate=0.0),
    )
    first, second = seen
    assert (first.name, first.server_round, first.uplink_bits, first.last) == (
        "0",
        1,
        0.1,
        None,
    )
    assert (second.name, second.last) == ("1", None)


@pytest.mark.parametrize("base_s", [0.0, 0.02, 0.09])
@pytest.mark.parametrize("s_per_bit", [0.01, 0.3])
def test_throughput_budgets_approach_the_time_of_a_step(
    base_s: float, s_per_bit: float
) -> None:
    """On a link of round trips and labels that take `base_s`, and a time for each bit per entry."""
    rule, bits = ThroughputBudgets(0.1), (0.2, 0.4)
    for server_round in range(1, 200):
        time_s = base_s + s_per_bit * sum(bits)
        last = LastTurn(
            *bits, steps=10, uplink_bytes=1, downlink_bytes=1, link_seconds=10 * time_s
        )
        bits = rule(DeviceRound("3", server_round, 0.2, 0.4, last=last)) or (0.0, 0.0)
    wanted_s = min(max(0.1, base_s + s_per_bit * 0.1), base_s + s_per_bit * 16)
    assert base_s + s_per_bit * sum(bits) == pytest.approx(wanted_s, rel=0.2)
    assert all(0.05 <= some <= 8.0 for some in bits)


def test_without_a_measurement_budgets_stay() -> None:
    rule = ThroughputBudgets(0.1)
    assert rule(DeviceRound("3", 1, 0.2, 0.4)) is None
    for unknown in (
        LastTurn(0.2, 0.4, 0, 0, 0, 3.0),
        LastTurn(0.2, 0.4, 10, 9, 9, 0.0),
    ):
        assert rule(DeviceRound("3", 2, 0.2, 0.4, last=unknown)) is None


def test_a_slow_device_gets_fewer_bits_by_what_was_measured() -> None:
    """Device 0 is behind 20 kB/s each way; a step of 128 x 256 with 1 bit each way moves 8 kB."""
    port, rate = free_port(), 20_000
    seen: list[DeviceRound] = []

    def watch(device: DeviceRound) -> None:
        seen.append(device)

    with CuttingProxy(
        f"127.0.0.1:{port}", cuts=0, most_bytes=1, bytes_per_second=rate
    ) as slow:
        strategy = run(
            rounds=3,
            configs=[{"split-address": slow.address}],
            budgets=(ThroughputBudgets(0.2, most_bits=2.0), watch),
            uplink_bits=1.0,
            downlink_bits=1.0,
            endpoint=EndpointConfig(port=port),
        )
    bits = {
        name: [device.uplink_bits for device in seen if device.name == name]
        for name in ("0", "1")
    }
    assert bits["0"][0] == bits["1"][0] == 1.0
    assert max(bits["0"][1:]) < min(1.0, *bits["1"][1:])
    last = next(device.last for device in seen if device.name == "0" and device.last)
    assert last.link_seconds > 0.9 * (last.uplink_bytes + last.downlink_bytes) / rate
    assert (last.steps, last.uplink_bits) == (3, 1.0)
    assert strategy.ledger.total("train").link_seconds > last.link_seconds


def test_rules_have_the_same_name_in_every_process() -> None:
    class Mine:
        def __call__(self, device: DeviceRound) -> None:
            return None

    rules = [by_name, Mine(), partial(by_name), BudgetSchedule("warmup 4x 2")]
    assert "0x" not in rules_text(rules)
    assert rules_text(rules).startswith("by_name, <tests.strategy.test_budgets.")
    assert rules_text([]) == "none"


def test_run_config_texts() -> None:
    wanted: dict[str, list[BudgetRule]] = {
        "": [],
        "node-config": [NodeConfigBudgets()],
        "throughput 0.05s": [ThroughputBudgets(0.05)],
        "throughput 2s 0.1-4": [ThroughputBudgets(2.0, 0.1, 4.0)],
    }
    for text, rules in wanted.items():
        assert budget_rules(text) == rules
    for text in (
        "throughput",
        "throughput 0.05",
        "throughput 0s",
        "throughput 1s 4-0.1",
        "throughput 1s 1-33",
        "node",
    ):
        with pytest.raises(ValueError, match=f"device-budgets is '{text}'"):
            budget_rules(text)


@pytest.mark.parametrize(
    "settings",
    [(0.0,), (math.inf,), (math.nan,), (1.0, 0.0), (1.0, 2.0, 1.0), (1.0, 1.0, 64.0)],
)
def test_throughput_settings_out_of_range(settings: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="wanted"):
        ThroughputBudgets(*settings)
