"""docs/flower-features.md says what Flower's own strategies and mods do here."""

import pytest

from tests.strategy.flower_features_table import BEGIN, END, FEATURES, PAGE, Feature


def rows() -> list[str]:
    _, rest = PAGE.read_text().split(BEGIN)
    table, _ = rest.split(END)
    return table.splitlines()[2:]


# tests/strategy/test_flower_features.py runs most of them by default
@pytest.mark.extended
@pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: feature.written)
def test_the_page_says_what_happens(feature: Feature) -> None:
    assert feature.row() in rows()


def test_the_page_has_no_other_row() -> None:
    assert len(rows()) == len(FEATURES)
