"""docs/models.md says what happens to models of all kinds."""

import pytest

from tests.models_table import BEGIN, CASES, END, PAGE, Case, outcome


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_page_says_what_happens(case: Case) -> None:
    _, rest = PAGE.read_text().split(BEGIN)
    table, _ = rest.split(END)
    wanted = f"| {case.name} | {case.at_the_cut} | {outcome(case)} |"
    assert wanted in table.splitlines()


def test_the_page_has_no_other_row() -> None:
    _, rest = PAGE.read_text().split(BEGIN)
    table, _ = rest.split(END)
    assert len(table.splitlines()) == len(CASES) + 2
