"""Even levels of a power."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flwr_splitfc.codec import PayloadError, PowerQuant, Uniform
from flwr_splitfc.codec.format.symbols import pack_symbols
from flwr_splitfc.codec.quantisers.entry.header import LevelHeader, pack_level_header
from flwr_splitfc.codec.quantisers.entry.power_quant import power_levels
from tests.codec.quantisers.entry.test_entry_quant import (
    coded,
    header_of,
    matrix_like,
    squared_error,
)


def least_error(
    entries: list[float], low: float, high: float, power: float, levels: int
) -> float:
    """Each entry at its nearest level, the slow and obvious way."""
    first, last = (np.sign(x) * abs(x) ** power for x in (low, high))
    roots = [first + i * (last - first) / (levels - 1) for i in range(levels)]
    values = [np.sign(t) * abs(t) ** (1 / power) for t in roots]
    return sum(min((x - value) ** 2 for value in values) for x in entries)


@pytest.mark.parametrize("kind", ["normal", "relu", "cauchy"])
@pytest.mark.parametrize(
    ("rows", "columns", "budget_bytes"), [(1, 9, 24), (9, 7, 40), (16, 20, 150)]
)
@pytest.mark.parametrize("seed", range(2))
def test_no_power_is_better(
    kind: str, rows: int, columns: int, budget_bytes: int, seed: int
) -> None:
    matrix = matrix_like(kind, rows, columns, seed)
    payload, decoded = coded(PowerQuant(), matrix, budget_bytes)
    levels, entries = header_of(PowerQuant(), payload).levels, matrix.flatten().tolist()
    ends = min(entries), max(entries)
    best = min(
        least_error(entries, *ends, 8 / eighths, levels) for eighths in range(8, 65)
    )
    range_of_one_point = (ends[1] - ends[0]) / 4096
    assert (
        squared_error(decoded, matrix)
        <= 1.02 * best + len(entries) * range_of_one_point**2
    )


@pytest.mark.parametrize("eighths", [8, 9, 16, 37, 64])
@pytest.mark.parametrize(
    ("low", "high"), [(-3.0, 2.0), (0.0, 1e4), (1e-6, 5.0), (-0.3, -0.1)]
)
def test_levels_are_the_powers(eighths: int, low: float, high: float) -> None:
    roots = np.linspace(low, high, 100)
    expected = np.sign(roots) * np.abs(roots) ** (eighths / 8)
    found = power_levels(LevelHeader(100, low, high, eighths))
    np.testing.assert_allclose(
        found, expected, rtol=1e-6, atol=1e-12 * float(np.abs(expected).max())
    )


def test_long_tails_need_fewer_levels_than_even_ones() -> None:
    matrix = torch.randn(128, 64, generator=torch.Generator().manual_seed(0)) ** 3
    power, even = (
        squared_error(coded(method, matrix, 4000)[1], matrix)
        for method in (PowerQuant(), Uniform())
    )
    assert power < even / 2  # 0.04 to 0.35 over twenty seeds


def test_never_much_worse_than_even_levels() -> None:
    for seed in range(5):
        matrix = matrix_like("normal", 64, 32, seed).sigmoid()
        power, even = (
            squared_error(coded(method, matrix, 900)[1], matrix)
            for method in (PowerQuant(), Uniform())
        )
        assert power < 1.02 * even


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (LevelHeader(2, 0.0, 1.0, 7), "power is 7 eighths"),
        (LevelHeader(2, 0.0, 1.0, 65), "power is 65 eighths"),
        (LevelHeader(2, 0.0, 1e20, 16), "levels reach from 0.0 to inf"),
        (LevelHeader(2, -1e38, 1e38, 9), "levels reach from -inf to inf"),
    ],
)
def test_powers_out_of_range_are_refused(header: LevelHeader, message: str) -> None:
    payload = pack_level_header(header) + pack_symbols(
        [(np.zeros(4, np.int32), header.levels)]
    )
    with pytest.raises(PayloadError, match=message):
        PowerQuant().decode(memoryview(payload), 2, 2)
