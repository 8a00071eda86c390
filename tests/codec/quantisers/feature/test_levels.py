"""The levels: closed form and tables."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flwr_splitfc.codec.format.symbols import MOST_LEVELS, level_bits
from flwr_splitfc.codec.quantisers.feature.levels import (
    best_level,
    closed_form_thresholds,
    floor_level,
    optimal_level,
    upgrade_thresholds,
)

REFERENCE = {
    0.001: 1.1033321,
    0.5: 2.0,
    1: 2.3247180,
    6.75: 4.0,
    10: 4.5770894,
    1000: 33.1113935,
}


def bisected_root(u: float) -> float:
    low, high = 1.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (middle - 1) ** 3 < u * middle else (low, middle)
    return low


@pytest.mark.parametrize(("u", "level"), REFERENCE.items())
def test_reference_values(u: float, level: float) -> None:
    assert float(optimal_level(u)) == pytest.approx(level, abs=1e-7)


@given(st.floats(1e-6, 1e9))
def test_closed_form_is_the_root(u: float) -> None:
    assert float(optimal_level(u)) == pytest.approx(bisected_root(u), rel=1e-9)


def test_table_is_the_floor_of_the_closed_form() -> None:
    u = np.exp(np.random.default_rng(0).uniform(np.log(0.5), np.log(4e9), 200_000))
    level = optimal_level(u)
    clear = np.abs(level - np.rint(level)) > 1e-6
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(
        floor_level(u[clear]), np.clip(np.floor(level[clear]), 2, MOST_LEVELS)
    )


def test_table_reaches_a_level_exactly_at_its_threshold() -> None:
    thresholds = closed_form_thresholds()
    levels = np.arange(2, MOST_LEVELS + 1)
    np.testing.assert_array_equal(floor_level(thresholds), levels)
    np.testing.assert_array_equal(
        floor_level(np.nextafter(thresholds, 0)), np.maximum(levels - 1, 2)
    )


def test_best_integer_is_the_floor_or_one_more() -> None:
    thresholds, upgrades = closed_form_thresholds(), upgrade_thresholds()
    assert (thresholds[:-1] <= upgrades).all()
    assert (upgrades <= thresholds[1:]).all()
    u = np.exp(np.random.default_rng(1).uniform(-3, 23, 100_000))
    assert set(np.unique(best_level(u) - floor_level(u))) == {0, 1}


def test_best_integer_minimises_error_plus_bits() -> None:
    levels = np.arange(2, 400)
    for u in np.exp(np.random.default_rng(2).uniform(-3, 10, 200)):
        cost = u / 2 / (levels - 1) ** 2 + np.log(levels)
        assert best_level(u) == levels[np.argmin(cost)]


def test_logarithm_series_is_accurate() -> None:
    q = np.arange(2.0, MOST_LEVELS)
    expected = 2 * np.log1p(1 / q) * ((q - 1) * q) ** 2 / (2 * q - 1)
    np.testing.assert_allclose(upgrade_thresholds(), expected, rtol=1e-14)


def test_bits_are_at_least_the_logarithm() -> None:
    levels = np.array([1, 2, 3, 7, 200, 256, 65536])
    bits = level_bits()[levels]
    assert (bits >= np.log2(levels)).all()
    np.testing.assert_allclose(bits, np.log2(levels), atol=1e-3)
