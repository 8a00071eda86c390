"""The identity quantiser."""

from __future__ import annotations

import pytest
import torch

from flwr_splitfc.codec import Float32, PayloadError


def test_round_trip_is_exact() -> None:
    matrix = torch.randn(5, 7)
    payload = Float32().encode(matrix, 0)
    assert len(payload) == Float32().smallest_bytes(5, 7) == 140
    decoded = Float32().decode(memoryview(payload), 5, 7)
    assert torch.equal(decoded, matrix)
    decoded += 1  # its own memory, not the payload's


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 2e38])
def test_values_out_of_range(bad: float) -> None:
    matrix = torch.tensor([[0.0, bad]])
    with pytest.raises(ValueError, match=r"NaN or inf|magnitude"):
        Float32().encode(matrix, 0)
    with pytest.raises(PayloadError, match="NaN, inf or a magnitude"):
        Float32().decode(memoryview(matrix.numpy().tobytes()), 1, 2)


def test_wrong_length() -> None:
    with pytest.raises(PayloadError, match="7 bytes; 1 x 2 <f4 take 8"):
        Float32().decode(memoryview(bytes(7)), 1, 2)
