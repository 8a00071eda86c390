"""The interval that keeps the direction."""

from __future__ import annotations

from math import sqrt

import pytest
import torch

from flwr_splitfc.codec import EasyQuant
from tests.codec.quantisers.entry.test_entry_quant import coded, header_of, matrix_like


def lost_direction(entries: list[float], low: float, high: float, levels: int) -> float:
    """One minus the cosine between the entries and what they are rounded to, the slow and obvious way."""
    step = (high - low) / (levels - 1)
    rounded = [
        low + min(max(round((x - low) / step), 0), levels - 1) * step for x in entries
    ]
    product = sum(x * y for x, y in zip(entries, rounded, strict=True))
    norms = sqrt(sum(x * x for x in entries) * sum(y * y for y in rounded))
    return 1 - product / norms if norms else 2.0


@pytest.mark.parametrize("kind", ["normal", "relu", "cauchy"])
@pytest.mark.parametrize(
    ("rows", "columns", "budget_bytes"),
    [(1, 9, 20), (12, 7, 30), (40, 30, 350), (40, 30, 900)],
)
@pytest.mark.parametrize("seed", range(2))
def test_no_scale_is_better(
    kind: str, rows: int, columns: int, budget_bytes: int, seed: int
) -> None:
    matrix = matrix_like(kind, rows, columns, seed)
    header = header_of(EasyQuant(), coded(EasyQuant(), matrix, budget_bytes)[0])
    entries = matrix.flatten().tolist()
    centre = min(max(0.0, min(entries)), max(entries))
    ends = [
        [centre + c / 100 * (end - centre) for end in (min(entries), max(entries))]
        for c in range(1, 101)
    ]
    best = min(lost_direction(entries, *interval, header.levels) for interval in ends)
    assert (
        lost_direction(entries, header.low, header.high, header.levels)
        <= 1.02 * best + 1e-6
    )


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-2.0, -1.0), (-1.0, 0.0)])
def test_two_values_are_not_clipped(low: float, high: float) -> None:
    """Their direction says nothing of the scale."""
    matrix = torch.tensor([low, high]).repeat(20, 3)
    assert torch.equal(coded(EasyQuant(), matrix, 40)[1], matrix)


def test_outliers_are_clipped() -> None:
    matrix = torch.cat([torch.linspace(-1, 1, 1000), torch.tensor([5.0])])[None]
    assert float(coded(EasyQuant(), matrix, 400)[1].max()) < 4
