"""The range coder alone, for the symbols that payloads have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from constriction import stream
from numpy.typing import NDArray

from flwr_splitfc.codec.arrays import Symbols
from flwr_splitfc.codec.format.symbols import Model, SymbolReader

Runs = list[tuple[Symbols, Model]]
"""Symbols in the order in which a payload has them, with their models."""


@contextmanager
def symbols_read() -> Iterator[Runs]:
    """Collect the symbols of every payload that is decoded meanwhile."""
    runs: Runs = []
    read = SymbolReader.read

    def collecting(reader: SymbolReader, count: int, levels: Model) -> Symbols:
        symbols = read(reader, count, levels)
        runs.append((symbols, levels))
        return symbols

    SymbolReader.read = collecting  # type: ignore[assignment,method-assign]
    try:
        yield runs
    finally:
        SymbolReader.read = read  # type: ignore[method-assign]


def range_encode(runs: Runs) -> NDArray[np.uint32]:
    encoder = stream.queue.RangeEncoder()
    for symbols, levels in runs:
        encoder.encode(symbols, *coder_model(levels))
    return encoder.get_compressed()


def range_decode(words: NDArray[np.uint32], runs: Runs) -> None:
    decoder = stream.queue.RangeDecoder(words)
    for symbols, levels in runs:
        # one number of levels a symbol tells how many there are
        counts = [] if isinstance(levels, np.ndarray) else [len(symbols)]
        decoder.decode(*coder_model(levels), *counts)


def coder_model(levels: Model) -> list[Any]:
    """Return the arguments by which the range coder is told a model."""
    if isinstance(levels, np.ndarray):
        return [stream.model.Uniform(), levels]
    if isinstance(levels, int):
        return [stream.model.Uniform(levels)]
    return [levels]
