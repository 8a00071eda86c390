"""Whatever a matrix and a budget are, the search for the step ends well."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import log2

import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, cross_entropy, gelu, layer_norm

from flwr_splitfc.codec.channels import Layout
from flwr_splitfc.codec.quality import gradient_error
from flwr_splitfc.codec.quantisers.transform.rate_search import (
    StepSearch,
    largest_payload,
)
from flwr_splitfc.codec.quantisers.transform.transform_quant import TransformQuant

LEAST_BITS, MOST_BITS = 0.05, 16.0


def noise(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns)


def after_relu(rows: int, columns: int) -> Tensor:
    return noise(rows, columns).relu()


def after_gelu(rows: int, columns: int) -> Tensor:
    return gelu(noise(rows, columns))


def low_rank(rows: int, columns: int) -> Tensor:
    return noise(rows, 3) @ noise(3, columns)


def low_rank_and_noise(rows: int, columns: int) -> Tensor:
    return low_rank(rows, columns) + 1e-3 * noise(rows, columns)


def with_offset(rows: int, columns: int) -> Tensor:
    return noise(rows, columns) + 3


def with_outlier_channel(rows: int, columns: int) -> Tensor:
    tokens = layer_norm(torch.randn(rows, columns // 64, 64), (64,))
    tokens[..., 0] *= 40
    return tokens


def conv_features(rows: int, columns: int) -> Tensor:
    maps = torch.randn(rows, columns // 16, 4, 4)
    return avg_pool2d(maps, 3, 1, 1).relu()


def gradient_of_few_classes(classes: int) -> Callable[[int, int], Tensor]:
    """By features before the last layer: (softmax - one-hot) W / B, of a rank below the classes."""

    def gradient(rows: int, columns: int) -> Tensor:
        features = after_relu(rows, columns).requires_grad_()
        weights = 3 * noise(classes, columns) / columns**0.5
        labels = torch.randint(classes, (rows,))
        loss = cross_entropy(features @ weights.T, labels)
        return torch.autograd.grad(loss, features)[0]

    return gradient


MATRICES = {
    "noise": noise,
    "relu": after_relu,
    "gelu": after_gelu,
    "low rank": low_rank,
    "low rank and noise": low_rank_and_noise,
    "offset": with_offset,
    "outlier channel": with_outlier_channel,
    "conv": conv_features,
    "2 classes": gradient_of_few_classes(2),
    "5 classes": gradient_of_few_classes(5),
    "10 classes": gradient_of_few_classes(10),
}


def check_ladder(matrix: Tensor, budgets: int) -> None:
    """Code a matrix with budgets from the least to the most, each by the same factor larger."""
    flat = matrix.flatten(1)
    rows, columns = flat.shape
    quantiser = TransformQuant().for_layout(Layout.of(matrix.shape))
    errors = []
    for rung in range(budgets):
        bits = LEAST_BITS * (MOST_BITS / LEAST_BITS) ** (rung / (budgets - 1))
        budget_bytes = int(flat.numel() * bits) // 8
        if budget_bytes < quantiser.smallest_bytes(rows, columns):
            continue
        payload = quantiser.encode(flat, budget_bytes)
        decoded = quantiser.decode(memoryview(payload), rows, columns)
        assert len(payload) <= budget_bytes
        assert decoded.any(), f"{bits} bits buy nothing"
        errors.append(gradient_error(flat, decoded))
    for error, next_error in pairwise(errors):
        # 1.41 times as large was seen, where few coefficients are all there is
        assert next_error < 2 * error + 1e-8
    assert errors[-1] < 1e-3


@pytest.mark.parametrize("kind", MATRICES)
def test_every_budget_buys_something_and_more_buys_more(kind: str) -> None:
    check_ladder(MATRICES[kind](32, 512), budgets=25)


@pytest.mark.extended
@pytest.mark.parametrize("kind", MATRICES)
@pytest.mark.parametrize("shape", [(64, 256), (64, 512), (32, 2048), (128, 1152)])
def test_every_budget_of_a_dense_ladder(kind: str, shape: tuple[int, int]) -> None:
    check_ladder(MATRICES[kind](*shape), budgets=24)


def code_of_fine_steps(step: float) -> bytes:
    """About what 1,000 coefficients take that are all far above the step."""
    bits_each = max(0.0, -log2(step))
    return bytes(int(1000 * bits_each / 8))


@pytest.mark.parametrize("first_step", [1e-5, 1e-3, 0.5])
@pytest.mark.parametrize("budget_bytes", [300, 700, 1200])
def test_lengths_that_are_no_power_of_the_step(
    first_step: float, budget_bytes: int
) -> None:
    """With several bits for a coefficient, a step twice as large saves one bit of them."""
    search = StepSearch(first_step)
    payload = largest_payload(search, code_of_fine_steps, 1.0, 1e-4, budget_bytes)
    assert 0.9 * budget_bytes <= len(payload) <= budget_bytes


@pytest.mark.parametrize("cliff", [0.003, 0.04, 0.7])
def test_a_payload_that_fits_is_found_behind_a_cliff(cliff: float) -> None:
    """Finer steps than that are all too long, by nearly nothing."""

    def code(step: float) -> bytes:
        return bytes(1001 if step < cliff else 10)

    payload = largest_payload(StepSearch(0.001), code, 1.0, 1e-4, budget_bytes=1000)
    assert len(payload) == 10


def test_the_search_ends_where_nothing_fits() -> None:
    def code(step: float) -> bytes:
        return bytes(1001)

    payload = largest_payload(StepSearch(0.001), code, 1.0, 1e-4, budget_bytes=1000)
    assert payload == b""
