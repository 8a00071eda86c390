"""Even levels between the extremes."""

from __future__ import annotations

import pytest

from flwr_splitfc.codec import Uniform
from tests.codec.quantisers.entry.test_entry_quant import coded, header_of, matrix_like


@pytest.mark.parametrize("kind", ["normal", "relu", "cauchy", "offset"])
@pytest.mark.parametrize("seed", range(5))
def test_every_entry_goes_to_the_nearest_level(kind: str, seed: int) -> None:
    matrix = matrix_like(kind, 8 + seed, 12, seed)
    payload, decoded = coded(Uniform(), matrix, 40 + 20 * seed)
    levels = header_of(Uniform(), payload).levels
    low, high = float(matrix.min()), float(matrix.max())
    values = [low + i * (high - low) / (levels - 1) for i in range(levels)]
    half_step = (high - low) / (levels - 1) / 2
    for entry, seen in zip(
        matrix.flatten().tolist(), decoded.flatten().tolist(), strict=True
    ):
        nearest = min(values, key=lambda value: abs(value - entry))
        tie = abs(abs(nearest - entry) - half_step) < 1e-3 * half_step
        assert tie or seen == pytest.approx(nearest, rel=1e-6)
