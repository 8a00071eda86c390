"""The transforms: orthonormal, exact on the decoder's side, and alike on every machine."""

from __future__ import annotations

from math import cos, pi, sqrt

import numpy as np
import pytest
import torch

from flwr_splitfc.codec.channels import Layout
from flwr_splitfc.codec.quantisers.transform.klt import (
    LONGEST_DCT,
    REFLECTOR_STEPS,
    dct_length,
    dct_matrix,
    fit_reflectors,
    from_directions,
    from_frequencies,
    klt_matrix,
    to_directions,
    to_frequencies,
)

SHAPES = [
    ((5, 8, 6, 4), None),
    ((5, 9, 6), None),
    ((5, 3, 4, 2), -1),
    ((5, 2, 3, 4, 2), 2),
    ((5, 12), None),
    ((5, 7, 1, 1), None),
]


@pytest.mark.parametrize(("shape", "dim"), SHAPES)
def test_a_layout_puts_channels_first(shape: tuple[int, ...], dim: int | None) -> None:
    features = torch.randn(shape)
    position = dim if dim is not None else {2: 1, 3: 2}.get(len(shape), 1)
    layout = Layout.of(shape, dim=dim)
    parts = layout.split(features.flatten(1))
    assert torch.equal(parts, features.movedim(position, 1).reshape(parts.shape))
    assert torch.equal(layout.join(parts), features.flatten(1))
    assert layout.axes == (
        () if len(shape) == 2 else features.movedim(position, 1).shape[2:]
    )


@pytest.mark.parametrize("length", range(1, LONGEST_DCT + 1))
def test_no_cosine_is_near_a_tie(length: int) -> None:
    """So that any machine's cosine, wrong by 1e-12 or less, makes the same integers."""
    scales = [sqrt((2 if k else 1) / length) * 4096 for k in range(length)]
    exact = [
        [scales[k] * cos(pi * (2 * i + 1) * k / (2 * length)) for i in range(length)]
        for k in range(length)
    ]
    fractions = np.abs(np.array(exact)) % 1
    assert np.abs(fractions - 0.5).min() > 1e-7
    assert torch.equal(
        dct_matrix(length), torch.tensor(exact, dtype=torch.float64).round()
    )


def test_an_axis_is_transformed_in_blocks() -> None:
    assert [dct_length(size) for size in (1, 6, 64, 65, 97, 130, 224)] == [
        1,
        6,
        64,
        13,
        1,
        26,
        56,
    ]


@pytest.mark.parametrize(("shape", "dim"), SHAPES)
def test_frequencies_come_back(shape: tuple[int, ...], dim: int | None) -> None:
    layout = Layout.of(shape, dim=dim)
    integers = torch.randint(
        -5000, 5000, (shape[0], layout.channels.count, layout.places)
    ).double()
    coefficients = to_frequencies(integers.float(), layout.axes)
    torch.testing.assert_close(
        coefficients.square().sum(), integers.float().square().sum(), rtol=1e-3, atol=0
    )
    back = from_frequencies((256 * coefficients.double()).round(), layout.axes)
    assert float((back / 256 - integers).abs().max()) < 6
    assert torch.equal(back, back.round())


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
