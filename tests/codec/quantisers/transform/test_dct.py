"""The DCT: orthonormal, exact on the decoder's side, and alike on every machine."""

from __future__ import annotations

from math import cos, pi, sqrt

import numpy as np
import pytest
import torch

from flwr_splitfc.codec.channels import Layout
from flwr_splitfc.codec.quantisers.transform.dct import (
    LONGEST_DCT,
    dct_length,
    dct_matrix,
    from_frequencies,
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
