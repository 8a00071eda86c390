"""Quantised coefficients come back, wherever they are and however large."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flwr_splitfc.codec import PayloadError
from flwr_splitfc.codec.format.symbols import SymbolReader, pack_symbols
from flwr_splitfc.codec.quantisers.transform.coefficients import (
    MOST_MAGNITUDE,
    coefficient_runs,
    read_coefficients,
)


def through(magnitudes: Tensor, negative: Tensor, contexts: Tensor) -> Tensor:
    data = pack_symbols(coefficient_runs(magnitudes, negative, contexts))
    reader = SymbolReader(memoryview(data))
    places, values = read_coefficients(reader, contexts)
    reader.close()
    back = torch.zeros(len(contexts))
    back[torch.from_numpy(places)] = torch.from_numpy(values).float()
    return back


@given(
    size=st.integers(1, 300),
    contexts=st.integers(1, 40),
    share=st.floats(0, 1),
    largest=st.sampled_from([1, 2, 14, 15, 16, 400, MOST_MAGNITUDE]),
    seed=st.integers(0, 2**32),
)
def test_coefficients_come_back(
    size: int, contexts: int, share: float, largest: int, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    magnitudes = draw.integers(1, largest + 1, size) * (draw.random(size) < share)
    signs = torch.from_numpy(draw.random(size) < 0.5)
    where = torch.from_numpy(draw.integers(0, contexts, size).astype(np.uint8))
    sent = torch.from_numpy(magnitudes).float()
    assert torch.equal(through(sent, signs, where), sent.where(~signs, -sent))


@pytest.mark.parametrize("size", [10_000, 300_000])
def test_one_far_gap_among_many_neighbours(size: int) -> None:
    magnitudes = torch.zeros(size)
    magnitudes[:1000] = 1
    magnitudes[-1] = MOST_MAGNITUDE
    contexts = torch.zeros(size, dtype=torch.uint8)
    assert torch.equal(through(magnitudes, magnitudes < 0, contexts), magnitudes)


def test_zeros_cost_next_to_nothing() -> None:
    contexts = torch.zeros(10_000, dtype=torch.uint8)
    assert (
        len(pack_symbols(coefficient_runs(torch.zeros(10_000), contexts > 0, contexts)))
        <= 12
    )


def test_a_magnitude_too_large_is_refused() -> None:
    contexts = torch.zeros(4, dtype=torch.uint8)
    data = pack_symbols(
        coefficient_runs(torch.full((4,), MOST_MAGNITUDE + 1.0), contexts > 0, contexts)
    )
    with pytest.raises(PayloadError, match="at most 32768"):
        read_coefficients(SymbolReader(memoryview(data)), contexts)
