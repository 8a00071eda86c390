"""A run that is killed ends where an undisturbed one would."""

import random
import subprocess
import sys
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, Krum, QFedAvg, Strategy
from torch import nn

from flwr_splitfc import RoundRobin, SplitClientApp, SplitLearning
from flwr_splitfc.strategy import CheckpointError
from flwr_splitfc.strategy.checkpoint import (
    SCHEMA,
    checkpoint_path,
    load_checkpoint,
    save_checkpoint,
)
from tests.halves import DeviceHalf, ServerHalf, batches, same, seeded, weights
from tests.local_grid import LocalGrid
from tests.measured import MEASURED
from tests.strategy.killed_run import ROUNDS

ROOT = Path(__file__).parents[2]
ADAM = partial(torch.optim.Adam, lr=1e-2)


def start_run(folder: Path, out: Path) -> subprocess.Popen[str]:
    """The run of killed_run.py, once it is about to train."""
    out.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.strategy.killed_run", str(folder), str(out)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def last_round(folder: Path) -> int:
    """The round of the checkpoint, 0 if there is none."""
    state = load_checkpoint(folder)
    return state["round"] if state else 0


def kill_after_round(number: int, process: subprocess.Popen[str]) -> None:
    """Kill the run when this round is over, somewhere in what comes after."""
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= number:
            break
    time.sleep(random.uniform(0, 0.02))
    process.kill()


@pytest.mark.parametrize("kills", [1, pytest.param(9, marks=pytest.mark.slow)])
def test_a_killed_run_ends_as_an_undisturbed_one(kills: int, tmp_path: Path) -> None:
    with start_run(tmp_path / "undisturbed", tmp_path / "a") as undisturbed:
        assert undisturbed.wait() == 0

    killed_at = []
    for kill in range(kills):
        with start_run(tmp_path / "killed", tmp_path / "b") as process:
            complete = ROUNDS * (kill + 1) // (kills + 1)
            kill_after_round(complete, process)
        killed_at.append(last_round(tmp_path / "killed"))
    with start_run(tmp_path / "killed", tmp_path / "b") as last:
        assert last.wait() == 0

    assert killed_at == sorted(killed_at)
    assert killed_at[0] < ROUNDS, "no kill fell into the run"
    assert (tmp_path / "a" / "summary.json").read_text() == (
        tmp_path / "b" / "summary.json"
    ).read_text()
    for half in ("device", "server", "joined"):
        first, second = (
            torch.load(tmp_path / run / f"{half}.pt", weights_only=True)
            for run in ("a", "b")
        )
        assert same(first, second)


def load_data(context: Any) -> tuple[list[Any], list[Any]]:
    data = batches(3, seed=context.node_config["partition-id"])
    return data, data


def make(
    folder: Path | None,
    devices: Strategy | None = None,
    optimizer: Any = ADAM,
    **options: Any,
) -> SplitLearning:
    devices = devices or RoundRobin(min_available_nodes=3, fraction_evaluate=0.0)
    return SplitLearning(
        seeded(ServerHalf),
        nn.CrossEntropyLoss(),
        optimizer,
        device="cpu",
        devices=devices,
        checkpoint=folder,
        **options,
    )


def run(
    strategy: SplitLearning, rounds: int, half: type[nn.Module] = DeviceHalf
) -> tuple[dict[str, torch.Tensor], Any]:
    grid = LocalGrid(SplitClientApp(half, load_data, ADAM), 3)
    result = strategy.start(grid, ArrayRecord(seeded(half).state_dict()), rounds)
    return strategy.joined_state_dict(result.arrays), result


class NormalisedHalf(DeviceHalf):
    """Strategies average its count of batches, which is a whole number, in floats."""

    def __init__(self) -> None:
        super().__init__()
        self.layers.append(nn.BatchNorm2d(4))


def everyone(strategy: Any, **options: Any) -> Strategy:
    made: Strategy = strategy(
        fraction_evaluate=0.0,
        min_train_nodes=3,
        min_evaluate_nodes=3,
        min_available_nodes=3,
        **options,
    )
    return made


class Remembering(FedAvg):
    """Counts its rounds, and adds the count to a metric."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.rounds = 0

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        self.rounds += 1
        arrays, metrics = super().aggregate_train(server_round, replies)
        assert metrics is not None
        metrics["counted"] = self.rounds
        return arrays, metrics

    def state_dict(self) -> dict[str, Any]:
        return {"rounds": self.rounds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rounds = state["rounds"]


@pytest.mark.parametrize(
    "devices",
    [
        lambda: RoundRobin(min_available_nodes=3, fraction_evaluate=0.0),
        lambda: everyone(FedAdam, eta=0.05),
        lambda: everyone(FedAvgM, server_momentum=0.9),
        lambda: everyone(Krum),
        lambda: everyone(Remembering),
    ],
    ids=["round-robin", "fedadam", "fedavgm", "krum", "own-hook"],
)
def test_strategies_go_on_with_what_they_remember(tmp_path: Path, devices: Any) -> None:
    """One device trains after another, so that the shared half sees the same order twice."""
    options = {"optimizer_state": "per-device", "shared_server_half": False}
    wanted, whole = run(make(None, devices(), **options), 6, NormalisedHalf)
    run(make(tmp_path, devices(), **options), 2, NormalisedHalf)
    run(make(tmp_path, devices(), **options), 5, NormalisedHalf)
    got, resumed = run(make(tmp_path, devices(), **options), 6, NormalisedHalf)
    assert same(got, wanted)
    assert (
        list(resumed.train_metrics_clientapp)
        == list(whole.train_metrics_clientapp)
        == [1, 2, 3, 4, 5, 6]
    )
    for number, metrics in whole.train_metrics_clientapp.items():
        again = resumed.train_metrics_clientapp[number]
        assert {k: v for k, v in metrics.items() if k not in MEASURED} == {
            k: v for k, v in again.items() if k not in MEASURED
        }


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    wanted, first = run(make(tmp_path), 3)
    strategy = make(tmp_path)
    got, second = run(strategy, 3)
    assert same(got, wanted)
    assert second.train_metrics_clientapp == first.train_metrics_clientapp
    assert strategy.ledger.total("train").steps == 9


@pytest.mark.parametrize(
    "devices", [QFedAvg(client_learning_rate=0.1), type("Mine", (FedAvg,), {})()]
)
def test_strategies_with_unknown_state_are_refused_by_name(
    tmp_path: Path, devices: Strategy
) -> None:
    with pytest.raises(ValueError, match=type(devices).__name__):
        make(tmp_path, devices)


def damaged(tmp_path: Path) -> tuple[Path, bytes]:
    run(make(tmp_path), 1)
    path = checkpoint_path(tmp_path)
    return path, path.read_bytes()


def refused(folder: Path, match: str) -> None:
    before = checkpoint_path(folder).read_bytes()
    with pytest.raises(CheckpointError, match=match):
        run(make(folder), 2)
    assert checkpoint_path(folder).read_bytes() == before


def test_truncated_and_changed_checkpoints_are_refused(tmp_path: Path) -> None:
    path, data = damaged(tmp_path)
    for wrong in (
        data[:-1],
        data[: len(data) // 2],
        data[:40],
        data[:100] + b"x" + data[101:],
    ):
        path.write_bytes(wrong)
        refused(tmp_path, "damaged")


def test_foreign_and_older_checkpoints_are_refused(tmp_path: Path) -> None:
    path, _ = damaged(tmp_path)
    state = load_checkpoint(tmp_path)
    assert state is not None
    path.write_bytes(b"PK\x03\x04 something else")
    refused(tmp_path, "not a checkpoint")
    path.write_bytes(b"")
    refused(tmp_path, "not a checkpoint")
    save_checkpoint(tmp_path, {**state, "schema": SCHEMA - 1})
    refused(tmp_path, f"schema {SCHEMA - 1}, this version reads {SCHEMA}")


def test_checkpoints_of_other_runs_are_refused(tmp_path: Path) -> None:
    damaged(tmp_path)
    with pytest.raises(CheckpointError, match="seed '0', now '1'"):
        run(make(tmp_path, seed=1), 2)
    with pytest.raises(CheckpointError, match=r"codec .*float32.*, now .*float16"):
        run(make(tmp_path, codec="float16"), 2)
    other = SplitLearning(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 4)),
        nn.CrossEntropyLoss(),
        ADAM,
        device="cpu",
        devices=RoundRobin(min_available_nodes=3, fraction_evaluate=0.0),
        checkpoint=tmp_path,
    )
    with pytest.raises(CheckpointError, match="does not fit this run"):
        run(other, 2)


SGD = partial(torch.optim.SGD, lr=0.1)
STEPS = partial(torch.optim.lr_scheduler.StepLR, step_size=2)


def in_two_groups(parameters: Iterable[nn.Parameter]) -> torch.optim.SGD:
    first, *others = parameters
    return torch.optim.SGD([{"params": [first]}, {"params": others, "lr": 0.2}], lr=0.1)


@pytest.mark.parametrize(
    ("before", "now", "why"),
    [
        (
            {},
            {"optimizer": partial(ADAM, lr=1e-4)},
            "optimizer's lr '0.01', now '0.0001'",
        ),
        ({}, {"optimizer": SGD}, "optimizer 'Adam', now 'SGD'"),
        (
            {"optimizer": torch.optim.Adam},
            {"optimizer": partial(torch.optim.AdamW, weight_decay=0.1)},
            "weight_decay '0', now '0.1'",
        ),
        (
            {"optimizer": SGD},
            {"optimizer": partial(SGD, momentum=0.9)},
            "'0', now '0.9'",
        ),
        ({"optimizer": SGD}, {"optimizer": in_two_groups}, "lr '0.1', now '0.1, 0.2'"),
        ({}, {"scheduler": STEPS}, "scheduler 'none', now 'StepLR'"),
        (
            {"scheduler": STEPS},
            {"scheduler": partial(STEPS, step_size=3)},
            "scheduler's step_size '2', now '3'",
        ),
        ({}, {"max_grad_norm": 1.0}, "max_grad_norm 'None', now '1.0'"),
        ({}, {"accumulate_steps": 2}, "accumulate_steps '1', now '2'"),
    ],
)
def test_a_run_whose_server_half_would_train_otherwise_is_another(
    before: dict[str, Any], now: dict[str, Any], why: str, tmp_path: Path
) -> None:
    run(make(tmp_path, **before), 1)
    run(make(tmp_path, **before), 2)  # a scheduler has moved the rate by now
    with pytest.raises(CheckpointError, match=f"of another run: .*{why}"):
        run(make(tmp_path, **now), 3)


def test_a_checkpoint_that_lists_fewer_settings_is_gone_on_from(tmp_path: Path) -> None:
    """As those of versions before this one do."""
    run(make(tmp_path), 1)
    state = load_checkpoint(tmp_path)
    assert state is not None
    settings = state["settings"]
    state["settings"] = {k: v for k, v in settings.items() if "optimizer's" not in k}
    save_checkpoint(tmp_path, state)
    got, _ = run(make(tmp_path), 2)
    wanted, _ = run(make(None), 2)
    assert same(got, wanted)


class Pwned:
    """What a pickle could do."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (print, ("code ran",))


def test_code_in_a_checkpoint_is_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(tmp_path, {"settings": Pwned()})
    refused(tmp_path, "cannot be read")
    assert "code ran" not in capsys.readouterr().out


def test_a_round_that_breaks_leaves_the_checkpoint_of_the_one_before(
    tmp_path: Path,
) -> None:
    run(make(tmp_path), 2)

    def bad(server_round: int, arrays: ArrayRecord) -> None:
        raise ZeroDivisionError

    strategy = make(tmp_path)
    grid = LocalGrid(SplitClientApp(DeviceHalf, load_data, ADAM), 3)
    with pytest.raises(ZeroDivisionError):
        strategy.start(
            grid,
            ArrayRecord(seeded(DeviceHalf).state_dict()),
            4,
            train_config=ConfigRecord(),
            evaluate_fn=bad,
        )
    state = load_checkpoint(tmp_path)
    assert state is not None
    assert state["round"] == 2
    got, _ = run(make(tmp_path), 4)
    wanted, _ = run(make(None), 4)
    assert same(got, wanted)
    assert not same(got, weights(nn.Module()))
