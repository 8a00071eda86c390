"""What a run logs: lines of ours, Flower's at debug level, a bar in a terminal."""

import io
import logging
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp import strategy
from flwr.serverapp.strategy import FedAvg
from rich.console import Console
from torch import nn

from flwr_splitfc import RoundRobin, SplitClientApp, SplitFC, SplitFedV2
from flwr_splitfc.exchange import Ledger
from flwr_splitfc.run import Progress
from flwr_splitfc.run.flower_lines import quiet_flower
from flwr_splitfc.run.round_bar import round_bar
from tests.apps.server_runs import run as run_server_app
from tests.halves import DeviceHalf, ServerHalf, batches, seeded
from tests.local_grid import LocalGrid

ADAM = partial(torch.optim.Adam, lr=1e-2)
LOGGER = logging.getLogger("flwr")


def lines_at_info(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.INFO
    ]


@pytest.mark.parametrize(
    ("strategy", "devices"), [(SplitFC, RoundRobin()), (SplitFedV2, FedAvg())]
)
def test_a_round_is_a_line(
    strategy: Any, devices: FedAvg, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "flwr")
    app = SplitClientApp(DeviceHalf, lambda context: (batches(2), batches(1)), ADAM)
    made = strategy(seeded(ServerHalf), nn.CrossEntropyLoss(), ADAM, devices=devices)
    arrays = ArrayRecord(seeded(DeviceHalf).state_dict())
    made.start(LocalGrid(app, 2), arrays, 3)
    lines = lines_at_info(caplog)
    rounds = [number for number, line in enumerate(lines) if line.startswith("round ")]
    assert len(rounds) == 3
    # and nothing between them
    assert rounds[2] - rounds[0] == 2
    assert lines[0] == (
        f"Starting {strategy.__name__}: 3 rounds, devices train 0.00042 MB"
    )
    assert lines[-1].startswith("Finished in 0:00:")
    assert len(lines) < 16
    debug = [each.getMessage() for each in caplog.records if each.levelname == "DEBUG"]
    assert any("Aggregated MetricRecord" in line for line in debug)
    assert any(line.startswith("Device 1: ") for line in debug)


@pytest.mark.parametrize("strategy", ["splitfc", "fedavg", "fedadam"])
def test_a_strategy_goes_by_the_name_that_users_know(
    strategy: str, caplog: pytest.LogCaptureFixture, tmp_path: Any
) -> None:
    caplog.set_level(logging.INFO, "flwr")
    run_server_app(tmp_path, strategy=strategy, num_rounds=1)
    starts = [line for line in lines_at_info(caplog) if line.startswith("Starting ")]
    name = {"splitfc": "SplitFC", "fedavg": "FedAvg", "fedadam": "FedAdam"}[strategy]
    assert len(starts) == 1
    assert starts[0].startswith(f"Starting {name}: 1 rounds, devices train ")


def test_warnings_of_flowers_strategies_stay(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "flwr")
    with quiet_flower():
        FedAvg(fraction_evaluate=0.0)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "fraction_evaluate is set to 0.0" in record.getMessage()


@pytest.mark.parametrize(
    ("line", "stays"),
    [
        ("aggregate_train: Some clients reported errors. Skipping aggregation.", True),
        ("Privacy spent: epsilon=2.5 at delta=1e-05 after 3 releases", True),
        ("aggregate_train: Received 3 results and 0 failures", False),
    ],
)
def test_what_flower_says_of_privacy_at_info_alone_stays(
    line: str, stays: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "flwr")
    module = str(Path(strategy.__file__).parent / "dp_fixed_clipping.py")
    with quiet_flower():
        LOGGER.handle(
            LOGGER.makeRecord("flwr", logging.INFO, module, 1, line, (), None)
        )
    assert lines_at_info(caplog) == ([line] if stays else [])


def test_metrics_of_the_apps_own_are_in_the_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "flwr")
    progress = Progress(1, Ledger())
    on_devices = {"eval_acc": 0.5, "auc": 0.81234, "steps": 7, "list": [1.0]}
    progress.end_round(1, MetricRecord({"loss": 0.3, "f1": 1}), on_devices)
    (line,) = lines_at_info(caplog)
    assert " MB | f1 1 | auc 0.8123 | ETA " in line
    assert progress.rows[0]["evaluation"] == {
        "loss": 0.3,
        "f1": 1.0,
        "eval_acc": 0.5,
        "auc": 0.81234,
    }


def test_the_line_has_five_metrics_and_the_row_all_up_to_a_hundred(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "flwr")
    progress = Progress(1, Ledger())
    found = {f"m{number}": float(number) for number in range(200)}
    progress.end_round(1, MetricRecord({"accuracy": 0.5, **found}), {})
    (line,) = lines_at_info(caplog)
    assert " MB | m0 0 | m1 1 | m2 2 | m3 3 | m4 4 | ETA " in line
    assert progress.rows[0]["evaluation"] == {f"m{i}": float(i) for i in range(100)}


def shown(console: Console) -> str:
    progress = Progress(3, Ledger())
    with round_bar(3, 0, console):
        for number in (1, 2, 3):
            progress.end_round(number, {}, {})
    written = console.file
    assert isinstance(written, io.StringIO)
    return written.getvalue()


def test_a_terminal_has_a_bar_below_the_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    handler = logging.StreamHandler(stderr)
    monkeypatch.setattr(LOGGER, "handlers", [handler])
    terminal = Console(
        file=io.StringIO(), force_terminal=True, width=80, _environ={"TERM": "xterm"}
    )
    written = shown(terminal)
    assert "3/3" in written
    # the log's lines go above it
    assert "round 2/3 | loss -" in written
    assert not stderr.getvalue()
    assert handler.stream is stderr
    assert LOGGER.handlers == [handler]


def test_anything_else_has_none() -> None:
    assert shown(Console(file=io.StringIO(), width=80)) == ""
