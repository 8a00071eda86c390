"""Half precision."""

from __future__ import annotations

import pytest
import torch

from flwr_splitfc.codec import Float16, PayloadError
from flwr_splitfc.codec.quantisers.float16 import is_half_enough

NORMAL = torch.randn(64, 48, generator=torch.Generator().manual_seed(0))


def test_round_trip_to_half_precision() -> None:
    matrix = torch.randn(5, 7)
    payload = Float16().encode(matrix, 0)
    assert len(payload) == Float16().smallest_bytes(5, 7) == 70
    assert torch.equal(
        Float16().decode(memoryview(payload), 5, 7), matrix.half().float()
    )


def test_large_values_are_clamped() -> None:
    payload = Float16().encode(torch.tensor([[1e6, -1e30]]), 0)
    assert Float16().decode(memoryview(payload), 1, 2).tolist() == [[65504.0, -65504.0]]


def test_non_finite_payloads_are_refused() -> None:
    with pytest.raises(PayloadError, match="NaN, inf"):
        Float16().decode(
            memoryview(torch.tensor([float("nan")]).half().numpy().tobytes()), 1, 1
        )


@pytest.mark.parametrize(
    ("matrix", "enough"),
    [
        (NORMAL, True),
        (100 * NORMAL.relu(), True),
        (NORMAL + 30, True),
        (NORMAL.new_zeros(64, 48), True),
        # neither varies, and both are exact to half precision
        (1000 * NORMAL[:1], True),
        (1000 * NORMAL[:1].repeat(64, 1), True),
        # an offset, two kinds of columns, what overflows, and what vanishes
        (NORMAL + 1000, False),
        (torch.cat([NORMAL, 5000 + NORMAL], 1), False),
        (1e5 * NORMAL, False),
        (1e5 * NORMAL[:1], False),
        (1e37 * NORMAL, False),
        (1e-9 * NORMAL, False),
        (1e-30 * NORMAL[:1], False),
    ],
)
def test_half_precision_is_enough_beside_how_columns_vary(
    matrix: torch.Tensor, enough: bool
) -> None:
    assert is_half_enough(matrix) == enough


def test_wide_and_long_matrices_are_judged_as_their_parts() -> None:
    for shape in ((2, 150_000), (150_000, 2)):
        matrix = torch.randn(shape)
        assert is_half_enough(matrix)
        matrix[-1, -1] = 1e5
        assert not is_half_enough(matrix)
