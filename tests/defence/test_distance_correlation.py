"""Distance correlation against its definition, sum by sum."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flwr_splitfc.defence import distance_correlation


def brute_force(x: Tensor, z: Tensor) -> float:
    """The definition of Szekely, Rizzo and Bakirov (2007), entry by entry."""

    def centred(rows: Tensor) -> list[list[float]]:
        rows = rows.flatten(1).double()
        n = len(rows)
        a = [[float((rows[i] - rows[j]).norm()) for j in range(n)] for i in range(n)]
        of_row = [sum(line) / n for line in a]
        whole = sum(of_row) / n
        return [
            [a[i][j] - of_row[i] - of_row[j] + whole for j in range(n)]
            for i in range(n)
        ]

    a, b = centred(x), centred(z)
    n = len(x)
    pairs = [(i, j) for i in range(n) for j in range(n)]
    covariance = sum(a[i][j] * b[i][j] for i, j in pairs)
    spread_a = sum(a[i][j] ** 2 for i, j in pairs)
    spread_b = sum(b[i][j] ** 2 for i, j in pairs)
    return (covariance / (spread_a * spread_b) ** 0.5) ** 0.5


@pytest.mark.parametrize("rows", [2, 3, 11, 40])
def test_it_is_that_of_the_definition(rows: int) -> None:
    draw = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, 2, 3, generator=draw)
    z = x.flatten(1)[:, :4].square() + torch.randn(rows, 4, generator=draw)
    wanted = brute_force(x, z)
    assert distance_correlation(x, z).item() == pytest.approx(wanted, rel=1e-4)


def test_its_gradient_is_that_of_differences() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(6, 3, generator=draw)
    z = torch.randn(6, 2, generator=draw).requires_grad_()
    (gradient,) = torch.autograd.grad(distance_correlation(x, z), z)
    step = torch.zeros(6, 2)
    step[2, 1] = 1e-2
    above, below = (brute_force(x, z.detach() + sign * step) for sign in (1, -1))
    assert gradient[2, 1].item() == pytest.approx((above - below) / 2e-2, rel=1e-2)


@pytest.mark.parametrize("rows", [1, 4])
def test_what_does_not_vary_has_none_and_a_gradient_of_zero(rows: int) -> None:
    z = torch.ones(rows, 5, requires_grad=True)
    correlation = distance_correlation(torch.rand(rows, 3), z)
    correlation.backward()
    assert correlation.item() == 0
    assert z.grad is not None
    assert torch.equal(z.grad, torch.zeros_like(z))


def test_equal_samples_have_a_finite_gradient() -> None:
    z = torch.tensor([[1.0, 2.0], [1.0, 2.0], [3.0, 0.0]], requires_grad=True)
    distance_correlation(z.detach(), z).backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()


def test_other_numbers_of_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="3 inputs and 2 features"):
        distance_correlation(torch.rand(3, 2), torch.rand(2, 2))
