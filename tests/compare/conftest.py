"""Runs and their results as a comparison finds them."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flwr_splitfc.compare.flower_app import FlowerApp
from flwr_splitfc.compare.report.radio_link import RadioLink
from flwr_splitfc.compare.report.rows import KIND_COLUMNS, SUMMARY_COLUMNS, MethodRow
from flwr_splitfc.compare.report.run_totals import RUN_COLUMNS, RunTotals
from flwr_splitfc.compare.runs import Budget, Outcome, Run

TOY = Path(__file__).parent / "toy"


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[FlowerApp]:
    """The toy app, importable as in a worker process."""
    monkeypatch.syspath_prepend(str(TOY))
    yield FlowerApp.load(TOY)
    sys.modules.pop("toy_app", None)


def traffic(**counts: Any) -> dict[str, Any]:
    """What of a run's results says what it moved."""
    nothing = {
        "sessions": 0,
        "steps": 0,
        "entries": 0,
        "uplink_bytes": {},
        "downlink_bytes": {},
        "digest": "0",
    }
    return {"train": {**nothing, **counts}, "evaluate": nothing}


def row(
    number: int, accuracy: float | None, megabytes: float, seconds: float = 1.0
) -> dict[str, Any]:
    """A round's row; half of the bytes go up."""
    half = int(megabytes * 5e5)
    bits = {"uplink_bits_per_entry": 0.2, "downlink_bits_per_entry": 0.4}
    counts = {
        "round": number,
        "loss": 1.0,
        "steps": 10,
        "uplink_bytes": half,
        "downlink_bytes": half,
        "links": {"train": {}, "evaluate": {}},
    }
    return {**counts, **bits, "accuracy": accuracy, "seconds": seconds}


def finished(
    method: str,
    budget: Budget | None,
    seed: int,
    accuracies: list[float | None],
    moved: dict[str, Any] | None = None,
) -> tuple[Run, Outcome]:
    """A run that moved a megabyte in each round, in eleven round trips of a device."""
    rounds = [
        {
            **row(number, accuracy, 1.0),
            "links": {"train": {"0": [500_000, 500_000, 11]}, "evaluate": {}},
        }
        for number, accuracy in enumerate(accuracies, 1)
    ]
    results = {
        "rounds": rounds,
        "traffic": moved or traffic(),
        "payload_digest": f"{seed:032x}",
    }
    return Run(method, {"seed": seed}, budget, "test"), Outcome(
        "finished", results=results
    )


def measured(
    method: str, seed: int, numbers: list[tuple[float, float]], *, best_metric: str
) -> tuple[Run, Outcome]:
    """A run whose evaluations gave a loss and an r2, and no accuracy."""
    run, outcome = finished(method, None, seed, [None] * len(numbers))
    assert outcome.results is not None
    outcome.results["run_config"] = {"best-metric": best_metric}
    for done, (loss, r2) in zip(outcome.results["rounds"], numbers, strict=True):
        done["evaluation"] = {"loss": loss, "r2": r2}
    return run, outcome


def numbers_of(
    results: dict[str, Any], link: RadioLink, target: float | None = None
) -> dict[str, Any]:
    """What a run comes to, under the names of the CSV file."""
    totals = RunTotals(results, link, target)
    return {column.key: column.value(totals) for column in RUN_COLUMNS}


def cell(row: MethodRow, key: str) -> str:
    """What a comparison's tables show of a row in a column."""
    columns = {column.key: column for column in [*KIND_COLUMNS, *SUMMARY_COLUMNS]}
    return columns[key].text(row)
