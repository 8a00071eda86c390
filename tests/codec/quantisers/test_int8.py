"""Eight bits."""

from __future__ import annotations

import pytest
import torch

from flwr_splitfc.codec import Int8, PayloadError
from tests.codec.quantisers.entry.test_entry_quant import SUBNORMAL, matrix_like
from tests.codec.quantisers.feature.test_feature_quant import MATRICES


def coded(matrix: torch.Tensor) -> tuple[bytes, torch.Tensor]:
    payload = Int8().encode(matrix, 0)
    return payload, Int8().decode(memoryview(payload), *matrix.shape)


@pytest.mark.parametrize("kind", [*MATRICES, SUBNORMAL])
@pytest.mark.parametrize(
    ("rows", "columns"), [(1, 1), (2, 30), (63, 5), (64, 5), (200, 17), (64, 0), (3, 0)]
)
def test_error_is_at_most_half_a_step(kind: str, rows: int, columns: int) -> None:
    matrix = matrix_like(kind, rows, columns, seed=0)
    payload, decoded = coded(matrix)
    assert len(payload) == Int8().smallest_bytes(rows, columns)
    if columns == 0:
        return
    exact = matrix.double()
    spans = exact.amax(0) - exact.amin(0) if rows >= 64 else exact.amax() - exact.amin()
    allowed = spans / 255 / 2 * 1.001 + 1e-6 * exact.abs().max() + 200e-45
    assert bool(((decoded.double() - exact).abs() <= allowed).all())


def test_columns_have_their_own_intervals_where_they_cost_a_bit_or_less() -> None:
    assert Int8().smallest_bytes(64, 100) == 100 * (64 + 8)
    assert Int8().smallest_bytes(63, 100) == 100 * 63 + 8


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.5, 2e38])
def test_intervals_that_lie_are_refused(bad: float) -> None:
    payload = bytearray(Int8().encode(torch.tensor([[-1.0, 1.0]]), 0))
    payload[4:8] = torch.tensor(bad).numpy().tobytes()
    with pytest.raises(PayloadError, match="interval is not finite, ordered"):
        Int8().decode(memoryview(bytes(payload)), 1, 2)


@pytest.mark.parametrize("size", [0, 7, 9, 11])
def test_other_sizes_are_refused(size: int) -> None:
    with pytest.raises(
        PayloadError,
        match=f"matrix has {size} bytes; 1 x 2 of 8 bits in 1 groups take 10",
    ):
        Int8().decode(memoryview(bytes(size)), 1, 2)
