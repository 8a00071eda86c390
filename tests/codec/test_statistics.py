"""Column statistics against float64."""

from __future__ import annotations

import pytest
import torch

from flwr_splitfc.codec.statistics import (
    column_deviations,
    column_extremes,
    column_means,
)

SCALES = [(1, 0), (1e-3, 1e3), (1e-20, 0), (1e-42, 0), (1e37, 0)]


def random_matrix(rows: int, scale: float, offset: float) -> torch.Tensor:
    draw = torch.Generator().manual_seed(rows)
    return (
        torch.randn(rows, 300, dtype=torch.float64, generator=draw) * scale + offset
    ).float()


@pytest.mark.parametrize("rows", [1, 2, 3, 37, 256, 1000])
@pytest.mark.parametrize(("scale", "offset"), SCALES)
def test_extremes_and_means(rows: int, scale: float, offset: float) -> None:
    matrix = random_matrix(rows, scale, offset)
    low, high = column_extremes(matrix)
    exact = matrix.double()
    assert torch.equal(low, exact.amin(0))
    assert torch.equal(high, exact.amax(0))
    torch.testing.assert_close(
        column_means(matrix), exact.mean(0), rtol=1e-5, atol=6e-6 * scale + 1e-42
    )


@pytest.mark.parametrize("rows", [1, 2, 3, 37, 256, 1000])
@pytest.mark.parametrize(("scale", "offset"), SCALES)
def test_deviations(rows: int, scale: float, offset: float) -> None:
    matrix = random_matrix(rows, scale, offset)
    exact = matrix.double()
    spans = 2.0 * (exact.amax() - exact.amin()).expand(300)
    expected = exact.std(0, unbiased=False) / spans.clamp(min=1e-38)
    torch.testing.assert_close(
        column_deviations(matrix, spans), expected, rtol=1e-4, atol=1e-7
    )


def test_columns_of_very_different_spans_have_the_same_deviation() -> None:
    column = torch.tensor([0.0, 0.0, 1.0, 3.0])
    matrix = column[:, None] * torch.tensor([1e-37, 1e-20, 1.0, 1e20, 3e37])
    low, high = column_extremes(matrix)
    expected = (column / 3).std(0, unbiased=False).double().expand(5)
    torch.testing.assert_close(
        column_deviations(matrix, high - low), expected, rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_values_are_refused(bad: float) -> None:
    matrix = torch.zeros(9, 5)
    matrix[4, 3] = bad
    with pytest.raises(ValueError, match="NaN or inf"):
        column_extremes(matrix)


def test_large_magnitudes_are_refused() -> None:
    with pytest.raises(ValueError, match="magnitude 2e\\+38"):
        column_extremes(torch.tensor([[0.0], [-2e38]]))
