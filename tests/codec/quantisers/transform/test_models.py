"""The probabilities of symbols, and their parameters."""

from __future__ import annotations

import numpy as np
import pytest

from flwr_splitfc.codec.format.symbols import Model, SymbolReader, pack_symbols
from flwr_splitfc.codec.quantisers.transform.models import (
    GAPS,
    MAGNITUDES,
    gap_index,
    gap_shift,
    pair_model,
    signed_model,
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
        comes_back(GAPS * MAGNITUDES, pair_model(gap, ratio)) for gap in range(64)
    )
    assert all(comes_back(47, signed_model(share, ratio, 47)) for share in range(64))


@pytest.mark.parametrize(
    ("count", "size"),
    [(1, 1), (1, 2), (1, 2**31), (2**20, 2**20), (7, 1000), (999, 1000)],
)
def test_parameters_of_gaps_are_in_range(count: int, size: int) -> None:
    shift = gap_shift(count, size)
    assert 0 <= shift <= 22
    assert 0 <= gap_index(count, size, shift) < 64
