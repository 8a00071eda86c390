"""The budget is spent as well as integers allow."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from flwr_splitfc.codec.format.symbols import level_bits
from flwr_splitfc.codec.quantisers.feature.allocation.plan import Plan, plan_budget
from flwr_splitfc.codec.quantisers.feature.header import (
    ENDPOINT_LEVELS,
    quant_header_bytes,
)
from flwr_splitfc.codec.quantisers.feature.levels import best_level
from flwr_splitfc.codec.quantisers.feature.upgrades import column_levels

ROWS = 256


def columns_like(kind: str, count: int, seed: int) -> tuple[NDArray[np.float64], ...]:
    draw = np.random.default_rng(seed)
    spread = {
        "even": np.ones(count),
        "uniform": draw.uniform(0.01, 1, count),
        "heavy": np.abs(draw.standard_cauchy(count)),
        "two sizes": np.where(draw.random(count) < 0.5, 1.0, 0.01),
    }[kind]
    low = draw.normal(0, 0.1, count)
    mean = low + spread * draw.uniform(0.2, 0.8, count)
    return tuple(
        v.astype(np.float32).astype(np.float64) for v in (low, low + spread, mean)
    )


def budget_for(bits_per_entry: float, count: int) -> int:
    return int(ROWS * count * bits_per_entry / 8) + 100


def levels_of(plan: Plan) -> NDArray[np.int64]:
    header = plan.header
    return column_levels(plan.intervals.spans, header.multiplier, header.upgrades)


def entry_bits(plan: Plan) -> float:
    return ROWS * float(level_bits()[levels_of(plan)].sum())


def error(steps: NDArray[np.int64], levels: NDArray[np.int64]) -> float:
    active = steps > 0
    return float((steps[active] ** 2 / (4 * (levels[active] - 1.0) ** 2)).sum())


def lagrangian_bound(steps: NDArray[np.int64], bits: float, multiplier: float) -> float:
    """No levels that cost at most `bits` have less error; the dual is best nearby."""
    best = 0.0
    active = steps[steps > 0]
    for near in multiplier * np.exp(np.linspace(-0.3, 0.3, 4001)):
        levels = best_level(near * active**2.0)
        spent = float(level_bits()[levels].sum()) - bits / ROWS
        best = max(best, error(active, levels) + np.log(2) / (2 * near) * spent)
    return best


@pytest.mark.parametrize("kind", ["even", "uniform", "heavy", "two sizes"])
@pytest.mark.parametrize("bits_per_entry", [1.3, 1.9, 3.3, 6.0])
@pytest.mark.parametrize("count", [80, 400])
def test_levels_are_the_integer_optimum_up_to_one_upgrade(
    kind: str, bits_per_entry: float, count: int
) -> None:
    low, high, mean = columns_like(kind, count, seed=3)
    budget_bytes = budget_for(bits_per_entry, count)
    plan = plan_budget(low, high, mean, ROWS, budget_bytes)
    steps, levels = plan.intervals.spans, levels_of(plan)
    two_stage = len(plan.header.two_stage)
    stream_bits = 8 * (budget_bytes - quant_header_bytes(two_stage, count))
    coder_bits = 68 + 2e-4 * (ROWS + 2) * count
    side_bits = (
        2 * two_stage * level_bits()[ENDPOINT_LEVELS]
        + (count - two_stage) * level_bits()[plan.header.mean_levels]
    )
    bound = lagrangian_bound(
        steps, stream_bits - side_bits - coder_bits, plan.header.multiplier
    )
    active = levels > 1
    gains = (
        steps[active] ** 2
        / 4
        * (1 / (levels[active] - 1.0) ** 2 - 1 / levels[active] ** 2.0)
    )
    assert error(steps, levels) <= bound + gains.max()
    assert entry_bits(plan) + side_bits <= stream_bits


def integer_optimum(steps: NDArray[np.int64], bits: float) -> float:
    """The least error of integer levels within `bits` a row, by dynamic programming."""
    units_per_bit = 1000
    room = int(bits * units_per_bit)
    best = np.full(room + 1, np.inf)
    best[0] = 0.0
    for span in steps[steps > 0]:
        longer = np.full(room + 1, np.inf)
        for levels in range(2, 33):
            # rounded down, in the optimum's favour
            cost = int(np.log2(levels) * units_per_bit)
            if cost <= room:
                np.minimum(
                    longer[cost:],
                    best[: room + 1 - cost] + span**2 / (4 * (levels - 1.0) ** 2),
                    out=longer[cost:],
                )
        best = longer
    return float(best.min())


@pytest.mark.parametrize("kind", ["even", "uniform", "two sizes"])
@pytest.mark.parametrize(
    ("count", "bits_per_entry"),
    [(100, 1.1), (80, 1.5), (64, 1.9), (64, 2.6), (150, 1.3)],
)
def test_levels_are_within_one_percent_of_the_integer_optimum(
    kind: str, count: int, bits_per_entry: float
) -> None:
    low, high, mean = columns_like(kind, count, seed=count)
    budget_bytes = budget_for(bits_per_entry, count)
    plan = plan_budget(low, high, mean, ROWS, budget_bytes)
    two_stage = len(plan.header.two_stage)
    stream_bits = 8 * (budget_bytes - quant_header_bytes(two_stage, count))
    side_bits = (
        2 * two_stage * level_bits()[ENDPOINT_LEVELS]
        + (count - two_stage) * level_bits()[plan.header.mean_levels]
    )
    coder_bits = 68 + 2e-4 * (ROWS + 2) * count
    optimum = integer_optimum(
        plan.intervals.spans, (stream_bits - side_bits - coder_bits) / ROWS
    )
    assert error(plan.intervals.spans, levels_of(plan)) <= 1.01 * optimum


def test_equal_ranges_leave_no_bits_over() -> None:
    low, high = np.zeros(100), np.ones(100)
    plan = plan_budget(low, high, np.full(100, 0.5), ROWS, budget_for(1.9, 100))
    assert set(levels_of(plan)) == {3, 4}
    assert entry_bits(plan) / (ROWS * 100) > 1.83


def test_wide_columns_get_two_stages_and_narrow_ones_means() -> None:
    low, high, mean = columns_like("two sizes", 200, seed=0)
    plan = plan_budget(low, high, mean, ROWS, budget_for(0.6, 200))
    assert 0 < len(plan.header.two_stage) < 200
    narrowest_two_stage = (high - low)[plan.header.two_stage].min()
    others = np.delete(high - low, plan.header.two_stage)
    assert narrowest_two_stage >= others.max() - 1e-6
    assert plan.header.mean_levels >= 2


def test_means_far_off_the_grid_do_not_starve_the_entries() -> None:
    low = np.concatenate([np.zeros(20), np.full(20, 1e6), np.full(20, -1e6)])
    high = low + np.concatenate([np.ones(20), np.zeros(40)])
    plan = plan_budget(low, high, (low + high) / 2, ROWS, budget_for(2, 20))
    assert (plan.intervals.spans >= 0).all()
    assert plan.header.mean_levels >= 2


def test_equal_constant_columns_cost_no_symbol() -> None:
    same = np.full(10, 2.5)
    plan = plan_budget(same, same, same, ROWS, 1000)
    assert plan.header.mean_levels == 1
    assert plan.intervals.spans.sum() == 0


def test_impossible_budget_gives_the_smallest_plan() -> None:
    low, high, mean = columns_like("uniform", 50, seed=1)
    plan = plan_budget(low, high, mean, ROWS, 0)
    assert plan.is_smallest
