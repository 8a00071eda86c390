"""The numbers of a comparison, against ones worked out by hand."""

import csv
import io
import math
from statistics import stdev

import pytest

from flwr_splitfc.compare.report.lines import csv_text
from flwr_splitfc.compare.report.markdown import legend, markdown
from flwr_splitfc.compare.report.radio_link import RadioLink
from flwr_splitfc.compare.report.rows import KIND_COLUMNS, SUMMARY_COLUMNS, rows_of
from flwr_splitfc.compare.report.run_totals import RUN_COLUMNS
from flwr_splitfc.compare.runs import Outcome, Run
from flwr_splitfc.run.columns import shown_columns
from tests.compare.conftest import cell, finished, measured, numbers_of, traffic

LINK = RadioLink.parse("up=10,down=50,rtt=40")
SPLIT = traffic(
    sessions=10,
    steps=100,
    entries=1_000_000,
    uplink_bytes={
        "features": 25_000,
        "labels": 1_000,
        "model": 200_000,
        "state": 0,
        "framing": 24_000,
    },
    downlink_bytes={"gradient": 50_000, "model": 200_000},
)
UNSPLIT = traffic(
    steps=500, uplink_bytes={"model": 5_000_000}, downlink_bytes={"model": 6_250_000}
)


def test_numbers_of_a_split_run() -> None:
    outcome = finished("splitfc", (0.2, 0.4), 0, [None, 0.5, None, 0.9], SPLIT)[1]
    assert outcome.results is not None
    numbers = numbers_of(outcome.results, LINK)
    assert numbers["accuracy"] == 0.9
    assert numbers["rounds"] == 4
    assert numbers["uplink_bytes"] == 250_000
    assert numbers["downlink_bytes"] == 250_000
    assert numbers["uplink_bits_per_entry"] == pytest.approx(0.2)
    assert numbers["downlink_bits_per_entry"] == pytest.approx(0.4)
    assert numbers["cut_ratio"] == pytest.approx(8_000_000 / 75_000)
    assert numbers["total_ratio"] == pytest.approx((8_000_000 + 425_000) / 500_000)
    assert numbers["seconds"] == 4
    # four rounds of 4 Mbit at 10 Mbit/s, 4 Mbit at 50 Mbit/s, and 11 times 40 ms
    assert numbers["link_s"] == pytest.approx(4 * (0.4 + 0.08 + 11 * 0.04))


def test_numbers_of_a_run_without_a_cut() -> None:
    outcome = finished("fedavg", None, 0, [0.8], UNSPLIT)[1]
    assert outcome.results is not None
    numbers = numbers_of({**outcome.results, "run": {"turns": 20}}, LINK)
    assert numbers["turns"] == 20
    assert numbers["uplink_model_bytes"] == numbers["uplink_bytes"] == 5_000_000
    assert (
        numbers["cut_ratio"]
        is numbers["total_ratio"]
        is numbers["uplink_bits_per_entry"]
        is None
    )


def test_evaluation_counts_in_the_total_but_not_in_the_cut() -> None:
    outcome = finished("splitfc", (0.2, 0.4), 0, [0.9], SPLIT)[1]
    assert outcome.results is not None
    evaluated = {
        **SPLIT,
        "evaluate": {
            **SPLIT["evaluate"],
            "sessions": 2,
            "steps": 5,
            "uplink_bytes": {"features": 75_000},
        },
    }
    alone, both = (
        numbers_of({**outcome.results, "traffic": moved}, LINK)
        for moved in (SPLIT, evaluated)
    )
    assert both["cut_ratio"] == alone["cut_ratio"]
    assert both["uplink_bytes"] == 325_000
    assert both["uplink_features_bytes"] == 100_000
    assert both["total_ratio"] == pytest.approx(
        (575_000 - 75_000 + 8_000_000) / 575_000
    )


def test_a_row_is_the_mean_over_seeds_with_its_spread() -> None:
    accuracies = [0.90, 0.92, 0.97]
    outcomes = [
        finished("splitfc", (0.2, 0.4), seed, [a], SPLIT)
        for seed, a in enumerate(accuracies)
    ]
    outcomes += [
        finished("splitfc", (0.1, 0.2), 0, [0.5], SPLIT),
        finished("fedavg", None, 0, [0.8], UNSPLIT),
    ]
    rows = rows_of(outcomes, LINK, target=0.5)
    assert [row.label for row in rows] == [
        "splitfc 0.2/0.4",
        "splitfc 0.1/0.2",
        "fedavg",
    ]
    assert rows[0].seeds == 3
    accuracy = RUN_COLUMNS[0]
    assert rows[0].mean(accuracy) == pytest.approx(0.93)
    assert rows[0].spread(accuracy) == pytest.approx(stdev(accuracies))
    assert cell(rows[0], "accuracy") == "93.0 ± 3.6"
    assert [
        column.text(rows[1]) for column in shown_columns(SUMMARY_COLUMNS, rows)
    ] == [
        *(
            "splitfc",
            "0.1/0.2",
            "50.0",
            "1",
            "0.2000",
            "0.4000",
            "106.7",
            "16.9",
            "0.25",
            "0.25",
            "1",
            "1",
            "1.00",
            "1",
        )
    ]
    assert [column.text(rows[2]) for column in KIND_COLUMNS][2:6] == [
        "-",
        "-",
        "-",
        "5.00",
    ]


def test_what_devices_found_has_a_column_of_its_own() -> None:
    evaluated = [
        finished("splitfc", (0.2, 0.4), seed, [0.5, 0.9], SPLIT) for seed in (0, 1)
    ]
    for (_, outcome), found in zip(evaluated, (0.7, 0.8), strict=True):
        assert outcome.results is not None
        outcome.results["rounds"][0]["device_accuracy"] = found
        outcome.results["rounds"][1]["device_accuracy"] = None
    rows = rows_of([*evaluated, finished("fedavg", None, 0, [0.8], UNSPLIT)], LINK)
    assert [cell(row, "device_accuracy") for row in rows] == ["75.0 ± 7.1", "-"]
    assert "| accuracy, % | on devices, % | seeds |" in markdown(
        rows, "", legend(rows, LINK, None)
    )
    assert "on devices" in legend(rows, LINK, None)
    assert "on devices" not in markdown(rows[1:], "", legend(rows[1:], LINK, None))


def test_the_metric_of_runs_has_a_column() -> None:
    runs = [
        measured("a", seed, [(1.0, 0.1), (0.9, r2)], best_metric="highest r2")
        for seed, r2 in enumerate([0.25, 0.75])
    ]
    runs.append(measured("b", 0, [(1.0, 0.5)], best_metric="lowest loss"))
    runs.append(measured("c", 0, [(1.0, math.nan)], best_metric="highest r2"))
    runs.append(measured("d", 0, [(1.0, 0.5)], best_metric="highest accuracy"))
    rows = rows_of(runs, LINK)
    cells = [cell(row, "metric") for row in rows]
    assert cells == ["0.5 ± 0.3536", "1", "-", "-"]
    about = legend(rows, LINK, None)
    assert "`metric` is the last r2 or loss, as" in about
    assert "| accuracy, % | metric | seeds |" in markdown(rows, "", about)
    lines = csv.DictReader(io.StringIO(csv_text(runs, LINK)))
    assert [line["metric"] for line in lines] == ["0.25", "0.75", "1.0", "", ""]
    about = legend(rows[2:], LINK, None)
    assert "metric" not in markdown(rows[2:], "", about)


def test_errors_have_columns_where_they_were_measured() -> None:
    counts = {
        "feature_error_sum": 0.3,
        "feature_error_steps": 4,
        "gradient_error_sum": 5.0,
        "gradient_error_steps": 2,
    }
    moved = {**SPLIT, "train": {**SPLIT["train"], **counts}}
    measured = finished("splitfc", (0.2, 0.4), 0, [0.9], moved)
    older = finished("older", (0.2, 0.4), 0, [0.9], SPLIT)
    unsplit = finished("fedavg", None, 0, [0.8], UNSPLIT)
    rows = rows_of([measured, older, unsplit], LINK)
    assert [cell(row, "feature_error") for row in rows] == ["7.5", "-", "-"]
    assert [cell(row, "gradient_error") for row in rows] == ["250", "-", "-"]
    text = markdown(rows, "", legend(rows, LINK, None))
    assert (
        "| bits/entry down | error up, % | error down, % | cut, times fewer |" in text
    )
    assert "`error up` is the squared error of the features" in text
    assert "error" not in markdown(rows[1:], "", legend(rows[1:], LINK, None))
    lines = csv.DictReader(io.StringIO(csv_text([measured, unsplit], LINK)))
    assert [line["feature_error"] for line in lines] == ["0.075", ""]


def test_runs_without_results_show_why() -> None:
    too_small = (
        "uplink_bits=0.1 is too small for 8 x 8; the smallest that works is 0.25"
    )
    outcomes = [
        (Run("top-s", {"seed": 0}, (0.1, 0.2), ""), Outcome("impossible", too_small)),
        (Run("top-s", {"seed": 1}, (0.1, 0.2), ""), Outcome("impossible", too_small)),
        finished("splitfc", (0.1, 0.2), 0, [0.5], SPLIT),
        (
            Run("splitfc", {"seed": 1}, (0.1, 0.2), ""),
            Outcome("failed", "OSError: no | space"),
        ),
        (Run("fedavg", {"seed": 0}, None, ""), Outcome("to do")),
    ]
    rows = rows_of(outcomes, LINK)
    assert cell(rows[0], "accuracy") == "needs at least 0.25 up (2 runs)"
    assert cell(rows[1], "accuracy") == "50.0"
    assert rows[1].note == "failed: OSError: no | space"
    assert cell(rows[2], "accuracy") == "not run yet"
    text = markdown(rows, "", legend(rows, LINK, 0.5))
    assert "- splitfc 0.1/0.2: failed: OSError: no | space" in text
    widths = {line.count(" | ") for line in text.splitlines() if line.startswith("|")}
    assert widths == {
        len(shown_columns(SUMMARY_COLUMNS, rows)) - 1,
        len(shown_columns(KIND_COLUMNS, rows)) - 1,
    }
    assert "resent" not in text, "no run moved a byte of that kind"


def test_the_csv_has_a_line_per_run() -> None:
    outcomes = [
        finished("splitfc", (0.1, 0.2), 3, [0.5], SPLIT),
        (Run("fedavg", {"seed": 4}, None, ""), Outcome("failed", "two\nlines")),
    ]
    lines = list(csv.DictReader(io.StringIO(csv_text(outcomes, LINK))))
    assert [line["seed"] for line in lines] == ["3", "4"]
    assert lines[0]["uplink_features_bytes"] == "25000"
    assert lines[0]["payload_digest"] == f"{3:032x}"
    assert lines[1]["reason"] == "two\nlines"
    assert lines[1]["accuracy"] == ""


def test_a_target_counts_where_all_seeds_reach_it() -> None:
    outcomes = [
        finished("a", None, seed, accuracies, SPLIT)
        for seed, accuracies in enumerate([[0.7, 0.9], [0.9, 0.8]])
    ]
    outcomes += [
        finished("b", None, seed, accuracies, SPLIT)
        for seed, accuracies in enumerate([[0.9], [0.7]])
    ]
    rows = rows_of(outcomes, LINK, target=0.9)
    assert [cell(row, "target_bytes") for row in rows] == ["1.50", "-"]
    assert [cell(row, "target_link_s") for row in rows] == ["1", "-"]
    assert "until an evaluation first gave 90 %" in legend(rows, LINK, 0.9)
    assert "target" not in legend(rows, LINK, None)
