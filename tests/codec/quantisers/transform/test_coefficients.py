"""Quantised coefficients come back, wherever they are and however large."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flwr_splitfc.codec import PayloadError
from flwr_splitfc.codec.arrays import Ints
from flwr_splitfc.codec.format.symbols import SymbolReader, pack_symbols
from flwr_splitfc.codec.quantisers.transform.coefficients import (
    MOST_MAGNITUDE,
    coefficient_runs,
    read_coefficients,
)
from flwr_splitfc.codec.quantisers.transform.context_order import ContextOrder


def one_context(size: int) -> ContextOrder:
    """The order of a batch of one row, in which all coefficients are alike."""
    return ContextOrder(np.zeros((1, size), np.uint8), np.zeros(1, np.int64))


def packed(values: Ints, order: ContextOrder) -> memoryview:
    places = np.flatnonzero(values)
    return memoryview(pack_symbols(coefficient_runs(places, values[places], order)))


def through(values: Ints, order: ContextOrder) -> Ints:
    reader = SymbolReader(packed(values, order))
    places, in_order = read_coefficients(reader, order)
    reader.close()
    back = np.zeros_like(values)
    back[places] = in_order
    return back


@given(
    rows=st.integers(1, 12),
    columns=st.integers(1, 60),
    kinds=st.integers(1, 5),
    contexts=st.integers(1, 40),
    share=st.floats(0, 1),
    largest=st.sampled_from([1, 2, 14, 15, 16, 400, MOST_MAGNITUDE]),
    seed=st.integers(0, 2**32),
)
def test_coefficients_come_back(
    rows: int, columns: int, kinds: int, contexts: int, share: float, largest: int, seed: int
) -> None:  # fmt: skip
    draw = np.random.default_rng(seed)
    size = rows * columns
    values = draw.integers(-largest, largest + 1, size) * (draw.random(size) < share)
    order = ContextOrder(
        draw.integers(0, contexts, (kinds, columns)).astype(np.uint8),
        draw.integers(0, kinds, rows),
    )
    assert np.array_equal(through(values, order), values)


@pytest.mark.parametrize("size", [10_000, 300_000])
def test_one_far_gap_among_many_neighbours(size: int) -> None:
    values = np.zeros(size, np.int64)
    values[:1000] = 1
    values[-1] = MOST_MAGNITUDE
    assert np.array_equal(through(values, one_context(size)), values)


def test_zeros_cost_next_to_nothing() -> None:
    assert len(packed(np.zeros(10_000, np.int64), one_context(10_000))) <= 12


def test_a_magnitude_too_large_is_refused() -> None:
    order = one_context(4)
    data = packed(np.full(4, MOST_MAGNITUDE + 1), order)
    with pytest.raises(PayloadError, match="at most 32768"):
        read_coefficients(SymbolReader(data), order)
