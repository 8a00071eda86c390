"""What the quantisers of single entries have in common."""

from __future__ import annotations

import pytest
import torch

from flwr_splitfc.codec import BudgetError, codec_names, cut_codec
from flwr_splitfc.codec.format.symbols import MOST_LEVELS, most_levels, pack_symbols
from flwr_splitfc.codec.quantisers.entry.entry_quant import EntryQuant
from flwr_splitfc.codec.quantisers.entry.header import (
    LevelHeader,
    level_header_bytes,
    unpack_level_header,
)
from tests.codec.quantisers.feature.test_feature_quant import MATRICES

NAMES = [
    name for name in codec_names() if isinstance(cut_codec(name).quantiser, EntryQuant)
]
METHODS = [cut_codec(name).quantiser for name in NAMES]
SUBNORMAL = "subnormal"

every_method = pytest.mark.parametrize(
    "method", METHODS, ids=lambda method: type(method).__name__
)


def matrix_like(kind: str, rows: int, columns: int, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    return (
        torch.randn(rows, columns) * 1e-41
        if kind == SUBNORMAL
        else MATRICES[kind](rows, columns)
    )


def coded(
    method: EntryQuant, matrix: torch.Tensor, budget_bytes: int
) -> tuple[bytes, torch.Tensor]:
    payload = method.encode(matrix, budget_bytes)
    return payload, method.decode(memoryview(payload), *matrix.shape)


def header_of(method: EntryQuant, payload: bytes) -> LevelHeader:
    return unpack_level_header(memoryview(payload), parameter=method.has_parameter)[0]


def squared_error(decoded: torch.Tensor, matrix: torch.Tensor) -> float:
    return float((decoded.double() - matrix.double()).square().sum())


@every_method
@pytest.mark.parametrize("kind", [*MATRICES, SUBNORMAL])
@pytest.mark.parametrize(
    ("rows", "columns"), [(1, 1), (1, 50), (2, 3), (5, 1), (33, 129), (256, 72)]
)
def test_budget_is_kept_and_values_stay_within_the_matrix(
    method: EntryQuant, kind: str, rows: int, columns: int
) -> None:
    matrix = matrix_like(kind, rows, columns, seed=2)
    for bits in (0.05, 1.2, 3, 20):
        budget_bytes = max(
            int(rows * columns * bits / 8), method.smallest_bytes(rows, columns)
        )
        payload, decoded = coded(method, matrix, budget_bytes)
        assert len(payload) <= budget_bytes
        assert decoded.shape == (rows, columns)
        assert decoded.dtype == torch.float32
        rounding = 1e-6 * float(matrix.abs().max())
        assert float(decoded.min()) >= float(matrix.min()) - rounding
        assert float(decoded.max()) <= float(matrix.max()) + rounding


@every_method
def test_one_level_more_would_not_fit(method: EntryQuant) -> None:
    matrix = matrix_like("normal", 128, 40, seed=3)
    for budget_bytes in range(1200, 8000, 321):
        payload, _ = coded(method, matrix, budget_bytes)
        levels = header_of(method, payload).levels
        symbols = torch.randint(
            0, levels + 1, (matrix.numel(),), dtype=torch.int32
        ).numpy()
        header_bytes = level_header_bytes(parameter=method.has_parameter)
        assert (
            len(pack_symbols([(symbols, levels + 1)])) + header_bytes + 4 > budget_bytes
        )


def test_levels_are_bounded() -> None:
    assert most_levels(budget_bytes=0, symbols=100) == 2
    assert most_levels(budget_bytes=10**6, symbols=100) == MOST_LEVELS


@every_method
def test_more_bits_less_error(method: EntryQuant) -> None:
    matrix = matrix_like("relu", 128, 64, seed=4)
    errors = [
        squared_error(coded(method, matrix, 1100 * bits)[1], matrix)
        for bits in (1, 2, 3, 5, 8, 15)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-6 * errors[0]


@every_method
@pytest.mark.parametrize("value", [0.0, -0.0, 2.5, -1e-45, 3e-41, 1e38, -9.9e37])
def test_one_value_comes_back_without_symbols(method: EntryQuant, value: float) -> None:
    payload, decoded = coded(method, torch.full((9, 4), value), 100)
    assert len(payload) == level_header_bytes(parameter=method.has_parameter)
    assert bool((decoded == torch.tensor(value)).all())


@every_method
def test_no_columns(method: EntryQuant) -> None:
    payload, decoded = coded(method, torch.zeros(4, 0), 100)
    assert len(payload) <= method.smallest_bytes(4, 0)
    assert decoded.shape == (4, 0)


@every_method
def test_below_the_smallest_budget_entries_have_two_levels(method: EntryQuant) -> None:
    matrix = matrix_like("normal", 16, 9, seed=5)
    payload, _ = coded(method, matrix, 0)
    assert len(payload) <= method.smallest_bytes(16, 9)
    assert header_of(method, payload).levels == 2


@every_method
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_values_are_refused(method: EntryQuant, bad: float) -> None:
    matrix = torch.zeros(4, 5)
    matrix[2, 3] = bad
    with pytest.raises(ValueError, match="NaN or inf"):
        method.encode(matrix, 1000)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("rows", "columns"), [(1, 2), (7, 33), (64, 288), (256, 1152)])
def test_the_smallest_bits_that_are_named_are_enough(
    name: str, rows: int, columns: int
) -> None:
    torch.manual_seed(6)
    for reduction in (1, 3, 16):
        up, down = cut_codec(name, reduction=reduction).smallest_bits(rows, columns)
        cut = cut_codec(name, uplink_bits=up, downlink_bits=down, reduction=reduction)
        array, link = cut.encode_features(torch.randn(rows, columns).relu())
        assert len(array.data) * 8 <= rows * columns * up
        assert (
            len(cut.encode_gradient(torch.randn(rows, columns), link).data) * 8
            <= rows * columns * down
        )
        with pytest.raises(BudgetError, match=f"smallest that works is {up}"):
            cut_codec(name, uplink_bits=0.9 * up, reduction=reduction).check_budget(
                rows, columns
            )


@pytest.mark.parametrize("name", NAMES)
def test_dropout_scales_up_and_down(name: str) -> None:
    torch.manual_seed(7)
    cut = cut_codec(name, uplink_bits=6, downlink_bits=6, reduction=3)
    features, gradient = torch.randn(64, 60), torch.randn(64, 60)
    up, link = cut.encode_features(features, generator=torch.Generator().manual_seed(1))
    seen, server_link = cut.decode_features(up, expect=(64, 60))
    back = cut.decode_gradient(cut.encode_gradient(gradient, server_link), link)
    factor = link.expand(torch.ones(64, link.kept))
    for decoded, exact in ((seen, features * factor), (back, gradient * factor)):
        assert float((decoded - exact).norm() / exact.norm()) < 1e-3
        assert bool((decoded[:, factor[0] == 0] == 0).all())


def test_the_catalogue_has_methods() -> None:
    names = {type(method).__name__ for method in METHODS}
    assert names >= {"Uniform", "EasyQuant", "PowerQuant", "NoisyQuant"}
