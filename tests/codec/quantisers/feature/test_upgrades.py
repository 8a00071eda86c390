"""Which columns have a level more."""

from __future__ import annotations

import numpy as np
import pytest

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


def test_too_many_upgrades_are_refused() -> None:
    with pytest.raises(ValueError, match="3 upgrades of 2 columns"):
        column_levels(np.array([5, 0, 9]), 1.0, Upgrades(1, 1, 1))
    with pytest.raises(ValueError, match="1 upgrades of 0 columns"):
        column_levels(np.array([199]), 3e38, Upgrades(1))
