"""Even levels, moved by a fixed noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flwr_splitfc.codec import NoisyQuant, Uniform
from flwr_splitfc.codec.quantisers.entry.noisy_quant import noise
from tests.codec.quantisers.entry.test_entry_quant import (
    coded,
    header_of,
    matrix_like,
    squared_error,
)


def plain_noise(column: int) -> float:
    return ((column + 1) * 2654435769 % 2**32 + 0.5) / 2**32 - 0.5


def decoded_plainly(
    entries: list[list[float]], low: float, high: float, levels: int, amplitude: int
) -> list[float]:
    """Noise on, rounded, noise off, the slow and obvious way."""
    step, values = (high - low) / (levels - 1), []
    for row in entries:
        for column, entry in enumerate(row):
            moved = plain_noise(column) * amplitude / 255 * step
            symbol = min(max(round((entry + moved - low) / step), 0), levels - 1)
            values.append(min(max(low + symbol * step - moved, low), high))
    return values


@pytest.mark.parametrize("kind", ["normal", "relu", "cauchy", "mixed"])
@pytest.mark.parametrize(
    ("rows", "columns", "budget_bytes"), [(1, 9, 24), (9, 7, 30), (40, 30, 350)]
)
@pytest.mark.parametrize("seed", range(3))
def test_no_amplitude_is_better(
    kind: str, rows: int, columns: int, budget_bytes: int, seed: int
) -> None:
    matrix = matrix_like(kind, rows, columns, seed)
    payload, decoded = coded(NoisyQuant(), matrix, budget_bytes)
    header, rows_of = header_of(NoisyQuant(), payload), matrix.tolist()

    def error(amplitude: int) -> float:
        values = decoded_plainly(
            rows_of, float(matrix.min()), float(matrix.max()), header.levels, amplitude
        )
        return float(
            np.square(np.array(values) - matrix.double().numpy().ravel()).sum()
        )

    found = squared_error(decoded, matrix)
    assert found == pytest.approx(error(header.parameter or 0), rel=1e-3)
    assert found <= 1.001 * min(error(amplitude) for amplitude in range(0, 256, 17))


def test_noise_is_uniform_and_the_same_everywhere() -> None:
    assert noise(1000).tolist() == [plain_noise(column) for column in range(1000)]
    counts, _ = np.histogram(noise(1000), bins=20, range=(-0.5, 0.5))
    assert counts.min() >= 45


def test_gradients_around_zero_gain_from_noise() -> None:
    half = matrix_like("normal", 128, 72, seed=1) ** 3
    matrix = torch.cat([half, -half])  # four levels, none of them near zero
    noisy, even = (
        squared_error(coded(method, matrix, 4900)[1], matrix)
        for method in (NoisyQuant(), Uniform())
    )
    assert noisy < 0.5 * even
