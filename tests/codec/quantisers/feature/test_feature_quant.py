"""Adaptive feature-wise quantisation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from flwr_splitfc.codec import FeatureQuant
from flwr_splitfc.codec.format.symbols import SymbolReader
from flwr_splitfc.codec.quantisers.feature.header import unpack_quant_header
from flwr_splitfc.codec.quantisers.feature.upgrades import column_levels

MATRICES: dict[str, Callable[[int, int], torch.Tensor]] = {
    "normal": lambda rows, columns: torch.randn(rows, columns),
    "relu": lambda rows, columns: (
        torch.randn(rows, columns).relu() * torch.rand(columns) ** 3
    ),
    "constant columns": lambda rows, columns: torch.randn(columns).repeat(rows, 1),
    "one constant": lambda rows, columns: torch.full((rows, columns), -3.7),
    "zeros": lambda rows, columns: torch.zeros(rows, columns),
    "cauchy": lambda rows, columns: torch.empty(rows, columns).cauchy_(),
    "offset": lambda rows, columns: (
        torch.randn(rows, columns) + 1e5 * torch.randn(columns)
    ),
    "tiny": lambda rows, columns: torch.randn(rows, columns) * 1e-30,
    "huge": lambda rows, columns: torch.rand(rows, columns) * 2e38 - 1e38,
    "mixed": lambda rows, columns: (
        torch.randn(rows, columns) * 10 ** (torch.rand(columns) * 60 - 30)
    ),
}


def encode(matrix: torch.Tensor, budget_bytes: int) -> tuple[bytes, torch.Tensor]:
    payload = FeatureQuant().encode(matrix, budget_bytes)
    return payload, FeatureQuant().decode(memoryview(payload), *matrix.shape)


def allowed_error(payload: bytes, matrix: torch.Tensor) -> list[float]:
    """Half a step per column, the slow and obvious way from what was sent."""
    columns = matrix.shape[1]
    header, stream = unpack_quant_header(memoryview(payload), columns)
    reader = SymbolReader(stream)
    count = len(header.two_stage)
    ends = reader.read(2 * count, 200).reshape(count, 2).astype(np.int64)
    levels = column_levels(ends[:, 1] - ends[:, 0], header.multiplier, header.upgrades)
    grid_step = (header.high - header.low) / 199
    allowed = [0.0] * columns
    for position, column in enumerate(header.two_stage):
        span = grid_step * float(ends[position, 1] - ends[position, 0])
        allowed[column] = span / 2 / max(levels[position] - 1, 1)
    for column in set(range(columns)) - set(header.two_stage.tolist()):
        allowed[column] = (
            (header.mean_high - header.mean_low) / 2 / max(header.mean_levels - 1, 1)
        )
    return allowed


@pytest.mark.parametrize("kind", MATRICES)
@pytest.mark.parametrize("bits", [0.3, 1.5, 4, 12])
def test_error_is_at_most_half_a_step(kind: str, bits: float) -> None:
    torch.manual_seed(1)
    matrix = MATRICES[kind](64, 48)
    payload, decoded = encode(matrix, int(64 * 48 * bits / 8))
    assert len(payload) * 8 <= 64 * 48 * bits
    header, _ = unpack_quant_header(memoryview(payload), 48)
    target = matrix.double().mean(0).repeat(64, 1)
    two_stage = torch.from_numpy(header.two_stage)
    target[:, two_stage] = matrix[:, two_stage].double()
    rounding = 4e-6 * max(float(matrix.abs().max()), 1e-38)
    allowed = (
        torch.tensor(allowed_error(payload, matrix), dtype=torch.float64) * 1.01
        + rounding
    )
    assert bool(((decoded.double() - target).abs() <= allowed).all())


@pytest.mark.parametrize("kind", MATRICES)
@pytest.mark.parametrize(
    ("rows", "columns"), [(1, 1), (1, 50), (2, 3), (5, 1), (33, 129), (256, 72)]
)
@pytest.mark.parametrize("bits", [0.05, 0.5, 3, 40])
def test_budget_is_kept_and_used(
    kind: str, rows: int, columns: int, bits: float
) -> None:
    torch.manual_seed(2)
    matrix = MATRICES[kind](rows, columns)
    budget_bytes = max(
        int(rows * columns * bits / 8), FeatureQuant().smallest_bytes(rows, columns)
    )
    payload, decoded = encode(matrix, budget_bytes)
    assert len(payload) <= budget_bytes
    assert decoded.shape == (rows, columns)
    assert bool(torch.isfinite(decoded).all())


def test_budget_is_used_to_the_last_bytes() -> None:
    torch.manual_seed(3)
    matrix = torch.randn(256, 72) * torch.rand(72)
    for budget_bytes in range(6000, 6100, 7):
        assert budget_bytes - len(encode(matrix, budget_bytes)[0]) <= 16


def test_more_bits_less_error() -> None:
    torch.manual_seed(4)
    matrix = torch.randn(128, 64) * torch.rand(64)
    errors = [
        float((encode(matrix, bits * 1024)[1] - matrix).square().sum())
        for bits in (1, 2, 3, 5, 8, 12)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-4 * errors[0]


@pytest.mark.parametrize(("rows", "live"), [(8, 20), (16, 15)])
def test_constant_columns_take_no_budget_from_others(rows: int, live: int) -> None:
    """Equal means cost nothing, however many they are."""
    matrix = torch.zeros(rows, 1024)
    draw = torch.Generator().manual_seed(0)
    matrix[:, :live] = torch.randn(rows, live, generator=draw)
    _, decoded = encode(matrix, rows * 1024 // 40)
    assert float((decoded - matrix).square().sum() / matrix.square().sum()) < 0.01
    assert not decoded[:, live:].any()


def test_constant_columns_cost_no_entries() -> None:
    payload, decoded = encode(torch.full((256, 64), 2.5), 10_000)
    assert len(payload) < 100
    assert bool((decoded == 2.5).all())


@pytest.mark.parametrize("columns", [1, 40])
def test_below_the_smallest_budget_means_are_sent(columns: int) -> None:
    torch.manual_seed(5)
    matrix = torch.randn(16, columns)
    payload, decoded = encode(matrix, 0)
    assert len(payload) <= FeatureQuant().smallest_bytes(16, columns)
    assert bool((decoded == decoded[0]).all())


def test_no_columns() -> None:
    payload, decoded = encode(torch.zeros(4, 0), 100)
    assert len(payload) == 4
    assert decoded.shape == (4, 0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_values_are_refused(bad: float) -> None:
    matrix = torch.zeros(4, 5)
    matrix[2, 3] = bad
    with pytest.raises(ValueError, match="NaN or inf"):
        FeatureQuant().encode(matrix, 1000)


def test_decoding_does_not_depend_on_threads() -> None:
    torch.manual_seed(6)
    payload = FeatureQuant().encode(torch.randn(256, 512), 30_000)
    threads = torch.get_num_threads()
    try:
        decoded = []
        for count in (1, 2):
            torch.set_num_threads(count)
            decoded.append(FeatureQuant().decode(memoryview(payload), 256, 512))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*decoded)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_matrices_give_payloads_of_equal_error() -> None:
    matrix = torch.randn(256, 64)
    on_cpu, on_gpu = (encode(m, 4096)[1].cpu() for m in (matrix, matrix.cuda()))
    torch.testing.assert_close(
        (on_cpu - matrix).norm(), (on_gpu - matrix).norm(), rtol=1e-2, atol=0
    )
