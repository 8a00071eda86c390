"""The lines of a run, its rows, and its table."""

import json
import logging
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, MetricRecord

from flwr_splitfc.exchange import Ledger, Traffic
from flwr_splitfc.run import Progress, Round
from flwr_splitfc.run.results import read_results, results_text


def run(num_rounds: int, **found: Any) -> Progress:
    """A run in which devices find what is said in each evaluated round."""
    ledger = Ledger()
    progress = Progress(num_rounds, ledger, evaluate_every=2)
    evaluate = progress.watch(
        lambda server_round, arrays: MetricRecord({"accuracy": server_round / 100}),
        lambda: found if len(progress.rounds) % 2 else {},
    )
    for server_round in range(num_rounds + 1):
        if server_round:
            traffic = Traffic(
                steps=5,
                entries=1000,
                uplink_bytes=Counter(features=250),
                downlink_bytes=Counter(gradient=500),
            )
            ledger.add(server_round, "train", traffic, "0")
        evaluate(server_round, ArrayRecord())
    return progress


def test_a_line_tells_of_its_round_and_holds_its_row(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, "flwr"):
        progress = run(3, eval_acc=0.25)
    first, second, _ = caplog.records
    assert first.getMessage().startswith(
        "round 1/3 | loss - | accuracy - | bits/entry up 2.000 down 4.000 | 0.00075 MB | "
    )
    assert "| accuracy 2.0%, on devices 25.0% |" in second.getMessage()
    told = vars(second)
    assert told["num_rounds"] == 3
    assert told["standing"].last is progress.rounds[1]
    assert progress.rounds[1].to_json()["links"]["train"] == {"0": [250, 500, 0]}


def test_devices_accuracy_is_the_runs_where_the_server_has_none() -> None:
    progress = Progress(1, Ledger())
    progress.end_round(1, {}, {"accuracy": 0.5})
    assert progress.rounds[0].accuracy == 0.5
    assert progress.rounds[0].device_accuracy is None


def test_a_long_run_has_a_short_table_with_its_last_round() -> None:
    lines = run(60).table().splitlines()
    assert [int(line.split()[0]) for line in lines[2:]] == list(range(6, 61, 6))


def test_a_resumed_run_has_its_rounds() -> None:
    first = run(2)
    resumed = Progress(4, Ledger())
    resumed.resume(Round.from_json(row) for row in first.rows)
    assert resumed.rounds == first.rounds
    resumed.end_round(3, {}, {})
    assert [done.round for done in resumed.rounds] == [1, 2, 3]


def test_the_file_has_a_line_for_each_round(tmp_path: Path) -> None:
    progress = run(3)
    progress.write(tmp_path / "new" / "results.json", seed=0)
    text = (tmp_path / "new" / "results.json").read_text()
    assert list(json.loads(text)) == ["seed", "traffic", "devices", "rounds"]
    rows = text[text.index('"rounds": [\n') :].splitlines()[1:-2]
    assert [json.loads(row.rstrip(",")) for row in rows] == progress.rows


def test_the_file_is_json_whatever_the_numbers_are(tmp_path: Path) -> None:
    """JSON has no word for what is infinite or no number."""
    ledger = Ledger()
    progress = Progress(1, ledger)
    ledger.add(1, "train", Traffic(loss_sum=float("inf"), loss_rows=1), "0")
    progress.end_round(1, {"accuracy": float("nan")}, {})
    path = tmp_path / "results.json"
    progress.write(path, found=[1.5, float("-inf"), {"deep": float("nan")}])

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is no JSON")

    results = json.loads(path.read_text(), parse_constant=refuse)
    assert results["found"] == [1.5, None, {"deep": None}]
    assert results["rounds"][0]["loss"] is None
    assert results["rounds"][0]["accuracy"] is None


def test_settings_read_back_whatever_the_numbers_are(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    config = {"limit": float("inf"), "least": float("-inf"), "word": "inf", "seed": 1}
    run(1).write(path, run_config={**config, "none": float("nan")})
    results = read_results(path, "run_config")
    assert results_text(results) == path.read_text()
    read = results["run_config"]
    assert math.isnan(read.pop("none"))
    assert read == config
