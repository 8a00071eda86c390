"""Expected magnitudes of coefficients and the probabilities that follow from them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flwr_splitfc.codec.format.symbols import Model, SymbolReader, pack_symbols
from flwr_splitfc.codec.quantisers.transform.margins import (
    CONTEXTS,
    GAPS,
    MAGNITUDES,
    Margins,
    gap_index,
    gap_shift,
    magnitudes_model,
    nonzeros_model,
)


def comes_back(symbols: int, model: Model) -> bool:
    every = np.arange(symbols, dtype=np.int32)
    reader = SymbolReader(memoryview(pack_symbols([(every, model)])))
    same = np.array_equal(reader.read(symbols, model), every)
    reader.close()
    return same


@pytest.mark.parametrize("ratio", range(32))
def test_every_symbol_of_every_model_can_be_sent(ratio: int) -> None:
    assert all(
        comes_back(GAPS * MAGNITUDES, nonzeros_model(gap, ratio)) for gap in range(64)
    )
    assert all(comes_back(47, magnitudes_model(zero, ratio, 47)) for zero in range(64))


@pytest.mark.parametrize(
    ("count", "size"),
    [(1, 1), (1, 2), (1, 2**31), (2**20, 2**20), (7, 1000), (999, 1000)],
)
def test_parameters_of_gaps_are_in_range(count: int, size: int) -> None:
    assert 0 <= gap_shift(count, size) <= 22
    assert 0 <= gap_index(count, size) < 64


def test_contexts_are_the_expected_magnitudes() -> None:
    """Twice as large is two contexts further, but for the rounding of each share."""
    rows, directions, places = (
        torch.tensor([1.0, 4.0]),
        torch.tensor([1.0, 2.0, 8.0]),
        torch.tensor([0.25, 2.0]),
    )
    magnitudes = rows[:, None, None] * directions[:, None] * places
    contexts = Margins.of(magnitudes).contexts().view(2, 3, 2).int()
    expected = (2 * (magnitudes / magnitudes[0, 0, 0]).log2()).int()
    assert int((contexts - contexts[0, 0, 0] - expected).abs().max()) <= 2
    assert contexts.max() < CONTEXTS


def test_a_row_of_zeros_is_expected_to_be_small() -> None:
    magnitudes = torch.ones(3, 2, 4)
    magnitudes[1] = 0
    contexts = Margins.of(magnitudes).contexts().view(3, 8).int()
    assert int((contexts[0] - contexts[1]).min()) >= 14
