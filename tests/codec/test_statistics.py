"""Column statistics against float64."""

from __future__ import annotations

import pytest
import torch

from flwr_splitfc.codec.statistics import column_statistics


@pytest.mark.parametrize("rows", [1, 2, 3, 37, 256])
@pytest.mark.parametrize(("scale", "offset"), [(1, 0), (1e-3, 1e3), (1e-20, 0), (1e37, 0)])
def test_moments(rows: int, scale: float, offset: float) -> None:
    matrix = (torch.randn(rows, 300) * scale + offset).float()
    stats, exact = column_statistics(matrix), matrix.double()
    assert torch.equal(stats.low, exact.amin(0))
    assert torch.equal(stats.high, exact.amax(0))
    torch.testing.assert_close(stats.mean, exact.mean(0), rtol=1e-5, atol=3e-6 * scale)
    torch.testing.assert_close(stats.variance, exact.var(0, unbiased=False), rtol=1e-4, atol=1e-9 * scale**2)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_values_are_refused(bad: float) -> None:
    matrix = torch.zeros(9, 5)
    matrix[4, 3] = bad
    with pytest.raises(ValueError, match="NaN or inf"):
        column_statistics(matrix)


def test_large_magnitudes_are_refused() -> None:
    with pytest.raises(ValueError, match="magnitude 2e\\+38"):
        column_statistics(torch.tensor([[0.0], [-2e38]]))
