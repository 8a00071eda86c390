"""Half precision."""

from __future__ import annotations

import pytest
import torch

from flwr_splitfc.codec import Float16, PayloadError


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
