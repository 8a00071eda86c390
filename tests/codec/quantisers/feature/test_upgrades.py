"""Which columns have a level more."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_splitfc.codec.quantisers.feature.header import Upgrades
from flwr_splitfc.codec.quantisers.feature.levels import upgrade_thresholds
from flwr_splitfc.codec.quantisers.feature.upgrades import column_levels, upgrade_order


def test_upgrades_go_by_worth_then_column() -> None:
    steps = np.array([50, 199, 0, 50, 120, 199])
    base = column_levels(steps, 2e-3, Upgrades())
    worth = upgrade_thresholds()[np.maximum(base, 2) - 2] / np.maximum(steps, 1) ** 2.0
    expected = [i for _, i in sorted((worth[i], i) for i in range(6) if steps[i])]
    assert upgrade_order(steps, 2e-3).tolist() == expected
    for upgrades in range(6):
        levels = column_levels(steps, 2e-3, Upgrades(upgrades))
        assert np.flatnonzero(levels > base).tolist() == sorted(expected[:upgrades])
    skipping = column_levels(steps, 2e-3, Upgrades(1, 2, 2))
    assert np.flatnonzero(skipping > base).tolist() == sorted(
        [expected[0], *expected[3:5]]
    )


@given(
    st.lists(st.integers(0, 199), min_size=1, max_size=80),
    st.integers(-16, 16),
    st.integers(0, 10**6),
)
@settings(max_examples=200, deadline=None)
def test_levels_are_those_of_the_order(
    spans: list[int], exponent: int, draw: int
) -> None:
    steps = np.array(spans)
    base = column_levels(steps, 2.0**exponent, Upgrades())
    order = upgrade_order(steps, 2.0**exponent)
    first = draw % (len(order) + 1)
    skipped = draw // 100 % (len(order) - first + 1)
    more = draw // 10_000 % (len(order) - first - skipped + 1)
    upgraded = [*order[:first], *order[first + skipped : first + skipped + more]]
    expected = base.copy()
    expected[upgraded] += 1
    levels = column_levels(steps, 2.0**exponent, Upgrades(first, skipped, more))
    assert levels.tolist() == expected.tolist()


def test_too_many_upgrades_are_refused() -> None:
    with pytest.raises(ValueError, match="3 upgrades of 2 columns"):
        column_levels(np.array([5, 0, 9]), 1.0, Upgrades(1, 1, 1))
    with pytest.raises(ValueError, match="1 upgrades of 0 columns"):
        column_levels(np.array([199]), 3e38, Upgrades(1))
