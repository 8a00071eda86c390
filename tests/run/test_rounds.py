"""A round, its row in results.json, and the columns that show it."""

import json
from typing import Any

import pytest

from flwr_splitfc.run import Round, rounds
from flwr_splitfc.run.columns import Column, shown_columns, table_text, terminal_table
from flwr_splitfc.run.rounds import (
    ROUND_COLUMNS,
    RoundColumn,
    Standing,
    line_of,
    standings,
)

ROW = {
    "round": 2,
    "loss": 0.5,
    "accuracy": 0.75,
    "device_accuracy": None,
    "steps": 5,
    "uplink_bytes": 1_500_000,
    "downlink_bytes": 500_000,
    "uplink_bits_per_entry": 0.2,
    "downlink_bits_per_entry": 0.4,
    "feature_error": 0.0512,
    "gradient_error": None,
    "seconds": 1.25,
    "failures": {"3": "gone"},
    "links": {"train": {"0": [1_500_000, 500_000, 7]}, "evaluate": {}},
}


def table(*rows: dict[str, Any]) -> list[str]:
    after = standings(Round.from_json(row) for row in rows)
    columns = shown_columns(ROUND_COLUMNS, after)
    return table_text(terminal_table(columns, after)).splitlines()


def test_a_row_is_read_and_written_with_its_keys_in_order() -> None:
    assert json.dumps(Round.from_json(ROW).to_json()) == json.dumps(ROW)


@pytest.mark.parametrize("links", [{}, {"links": None}])
def test_rows_without_times_on_a_link_are_told(links: dict[str, Any]) -> None:
    row = {name: value for name, value in ROW.items() if name != "links"}
    with pytest.raises(ValueError, match="no times on a link: run it again"):
        Round.from_json({**row, **links})


@pytest.mark.parametrize("count", [1e308, -1, 10**400, None])
def test_counts_of_links_are_counts(count: Any) -> None:
    links = {"train": {"0": [count, 500_000, 7]}, "evaluate": {}}
    with pytest.raises(ValueError, match="links of 0"):
        Round.from_json({**ROW, "links": links})


def test_rows_of_other_versions_are_read() -> None:
    later = ("device_accuracy", "failures", "feature_error", "gradient_error")
    first = {key: ROW[key] for key in ROW if key not in later}
    done = Round.from_json({**first, "of_a_later_version": 1})
    assert (done.device_accuracy, done.failures) == (None, {})
    assert (done.feature_error, done.gradient_error) == (None, None)


def test_the_table_has_what_the_rounds_have() -> None:
    unsplit = {**ROW, "feature_error": None}
    assert table(unsplit, {**unsplit, "round": 3, "loss": None}) == [
        "  round      loss  accuracy  up b/entry  down b/entry  MB so far",
        "----------------------------------------------------------------",
        "      2    0.5000     75.0%       0.200         0.400       2.00",
        "      3         -     75.0%       0.200         0.400       4.00",
    ]
    heading, _, first, second = table(unsplit, {**unsplit, "device_accuracy": 0.7})
    assert heading.startswith("  round      loss  accuracy on devices  up b/entry")
    assert first.startswith("      2    0.5000     75.0%          -       0.200")
    assert second.startswith("      2    0.5000     75.0%      70.0%       0.200")


def test_errors_are_those_of_the_last_round_that_measured_them() -> None:
    unmeasured = {**ROW, "feature_error": None}
    both = {**ROW, "gradient_error": 3e-6}
    heading, _, *lines = table(unmeasured, ROW, unmeasured, both)
    assert "  down b/entry  up error  down error  MB so far" in heading
    errors = [line.split()[5:7] for line in lines]
    assert errors == [["-", "-"], ["5.1%", "-"], ["5.1%", "-"], ["5.1%", "<0.01%"]]
    standing = standings(map(Round.from_json, [both, unmeasured]))[-1]
    assert " down 0.400 | error 5.1% / <0.01% | 4.00 MB" in line_of(standing)
    assert "error" not in line_of(Standing(Round.from_json(unmeasured), 0, 0.0))


def test_a_line_in_the_list_is_a_column_everywhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps = RoundColumn("steps", "steps", width=7, in_line=" | {} steps")
    monkeypatch.setattr(rounds, "ROUND_COLUMNS", [*ROUND_COLUMNS, steps])
    done = Round.from_json(ROW)
    assert line_of(Standing(done, 2_000_000, 0.0)).endswith(" | 2.00 MB | 5 steps")
    shown = terminal_table(rounds.ROUND_COLUMNS, standings([done]))
    assert table_text(shown).splitlines()[0].endswith("MB so far   steps")


def test_cells_are_no_markup() -> None:
    column: Column[str] = Column("", "[bold]name", of=str)
    text = table_text(terminal_table([column], ["[red]a"]))
    assert text.splitlines()[2] == "    [red]a"
