"""Reflections of the rows that leave next to nothing of an offset in most of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flwr_splitfc.codec.channels import LARGEST_KLT
from flwr_splitfc.codec.quantisers.transform.klt import to_directions
from flwr_splitfc.codec.quantisers.transform.reflectors import REFLECTOR_STEPS
from flwr_splitfc.codec.quantisers.transform.row_means import mean_reflectors


@pytest.mark.parametrize("rows", [*range(1, 40), 64, 100, 240, 241, LARGEST_KLT])
def test_an_offset_is_in_the_first_rows(rows: int) -> None:
    vectors = mean_reflectors(rows)
    assert np.abs(vectors).max(initial=0) <= REFLECTOR_STEPS
    assert not np.triu(vectors, 1).any()
    offset = torch.ones(rows, 5, dtype=torch.float64)
    moved = to_directions(offset, vectors)
    torch.testing.assert_close(moved.norm(), offset.norm())
    assert not (moved[3:].abs() > 3e-5).any()


def test_too_many_rows_are_not_reflected() -> None:
    assert mean_reflectors(LARGEST_KLT + 1).shape == (LARGEST_KLT + 1, 0)
