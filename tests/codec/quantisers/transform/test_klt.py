"""The KLT: leading directions first, and exact on the decoder's side."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flwr_splitfc.codec.quantisers.transform.dct import from_frequencies
from flwr_splitfc.codec.quantisers.transform.klt import (
    from_directions,
    klt_matrix,
    to_directions,
)
from flwr_splitfc.codec.quantisers.transform.reflectors import (
    REFLECTOR_STEPS,
    fit_reflectors,
)


@pytest.mark.parametrize(
    ("size", "count"), [(1, 0), (4, 1), (7, 3), (32, 8), (100, 32)]
)
def test_leading_directions_come_first(size: int, count: int) -> None:
    spread = torch.linspace(2, -3, size).exp()
    mixed = torch.linalg.qr(torch.randn(size, size))[0] @ (
        spread[:, None] * torch.randn(size, 4000)
    )
    vectors = fit_reflectors(mixed, count)
    assert np.abs(vectors).max(initial=0) <= REFLECTOR_STEPS
    assert not np.triu(vectors, 1).any()
    klt = klt_matrix(vectors, np.arange(size))
    product = klt / 2**14
    torch.testing.assert_close(
        product.T @ product, torch.eye(size, dtype=torch.float64), rtol=0, atol=2e-3
    )
    moved = to_directions(mixed, vectors)
    torch.testing.assert_close(moved, product.T.float() @ mixed, rtol=0, atol=0.05)
    energy = moved.square().mean(1)
    best = torch.linalg.eigvalsh(mixed @ mixed.T / 4000).flip(0)
    torch.testing.assert_close(
        energy[:count].sum(), best[:count].sum(), rtol=0.02, atol=1e-6
    )


def test_directions_come_back_exactly_rounded() -> None:
    vectors = fit_reflectors(torch.randn(12, 50), 5)
    klt, live = klt_matrix(vectors, np.arange(12)), np.array([0, 3, 11])
    assert torch.equal(klt_matrix(vectors, live), klt[:, live])
    integers = torch.randint(-(2**20), 2**20, (3, 3, 10)).double()
    back = from_directions(integers, vectors, live)
    slow = [
        [[(sum(int(klt[i, k]) * int(integers[b, n, p]) for n, k in enumerate(live)) + 2**13) >> 14 for p in range(10)]
         for i in range(12)]
        for b in range(3)
    ]  # fmt: skip
    assert back.tolist() == slow


def test_products_stay_exact_at_the_largest_values() -> None:
    """Sums below 2^53, whatever a payload says, for the largest matrices that are transformed."""
    channels, length = 512, 64
    largest = torch.full((1, channels, length), 256.0 * 4096 + 144)
    frequencies = from_frequencies(largest.double(), (length,))
    assert float(frequencies.abs().max()) * 2**14 * channels < 2**53


def test_eigenvectors_that_are_no_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """LAPACK returned NaN for one batch in thirty of a run whose channels had died."""
    eigh = torch.linalg.eigh

    def no_numbers(matrix: torch.Tensor) -> object:
        values, vectors = eigh(matrix)
        if matrix.dtype == torch.float32:
            vectors[:, -1] = float("nan")
        return torch.return_types.linalg_eigh((values, vectors))

    samples = torch.randn(32, 500)
    wanted = fit_reflectors(samples.clone(), 4)
    monkeypatch.setattr(torch.linalg, "eigh", no_numbers)
    vectors = fit_reflectors(samples, 4)
    assert vectors.any(axis=0).all()
    # in float64 the same directions are found
    assert np.abs(vectors - wanted).max() <= 1
