"""Quantised coefficients, most of them zero, as runs of symbols.

Coefficients are taken context by context, row-major in each. Of a context the receiver
learns how many are not zero, then for each of these the gap of zeros before it and its
magnitude as one symbol; signs and whatever of gaps and magnitudes is large follow for
all together.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from constriction import stream
from numpy.typing import NDArray
from torch import Tensor

from flwr_splitfc.codec.arrays import Ints
from flwr_splitfc.codec.errors import PayloadError
from flwr_splitfc.codec.format.symbols import SymbolReader
from flwr_splitfc.codec.quantisers.transform.integer_codes import (
    Run,
    bit_lengths,
    escapes,
    plain_bits,
    read_bits,
    read_escapes,
    symbols,
)
from flwr_splitfc.codec.quantisers.transform.margins import (
    CONTEXTS,
    GAPS,
    MAGNITUDES,
    RATIOS,
    gap_index,
    gap_shift,
    nonzeros_model,
    ratio_index,
)

MOST_MAGNITUDE = 4096
"""Of a coefficient in steps; with more, sums of the inverse transform would not be exact."""


class _Order:
    """The coefficients of a batch context by context, from their contexts, uint8 and flat."""

    def __init__(self, contexts: Tensor) -> None:
        self.places: Ints = np.argsort(contexts.numpy(), kind="stable")
        self.sizes: Ints = torch.bincount(contexts, minlength=CONTEXTS).numpy()
        self.starts: Ints = np.cumsum(self.sizes) - self.sizes


class _Coded:
    """How each context is coded, of which `counts` coefficients are not zero: arrays (CONTEXTS,)."""

    def __init__(self, counts: Ints, sizes: Ints) -> None:
        self.counts = counts
        self.live = np.flatnonzero(counts)
        self.context = np.repeat(np.arange(CONTEXTS), counts)
        self.first = np.cumsum(counts) - counts
        self.shifts, self.gap_indices = np.zeros((2, CONTEXTS), np.int64)
        for c in self.live:
            self.shifts[c] = gap_shift(int(counts[c]), int(sizes[c]))
            self.gap_indices[c] = gap_index(int(counts[c]), int(sizes[c]))

    def models(
        self, ratios: NDArray[Any]
    ) -> Iterator[tuple[slice, stream.model.Model]]:
        """Which of all nonzeros are of a context, and their model, given the ratio of each live context."""
        for c, ratio in zip(self.live.tolist(), ratios.tolist(), strict=True):
            run = slice(int(self.first[c]), int(self.first[c] + self.counts[c]))
            yield run, nonzeros_model(int(self.gap_indices[c]), ratio)


def coefficient_runs(
    magnitudes: Tensor, negative: Tensor, contexts: Tensor
) -> Iterator[Run]:
    """Code whole magnitudes, float32, with signs and contexts; all flat, on the CPU, in the order of (B, C, f)."""
    order = _Order(contexts)
    found = magnitudes.numpy()[order.places]
    at = np.flatnonzero(found > 0)
    coded = _Coded(
        np.diff(np.searchsorted(at, [*order.starts, len(found)])), order.sizes
    )
    yield from _count_runs(coded.counts, order.sizes)
    values = found[at].astype(np.int64)
    gaps = np.diff(at, prepend=-1) - 1
    gaps[coded.first[coded.live]] = (
        at[coded.first[coded.live]] - order.starts[coded.live]
    )
    tops, shifts = np.minimum(values, MAGNITUDES) - 1, coded.shifts[coded.context]
    excess = np.bincount(coded.context, tops, CONTEXTS).astype(np.int64)
    ratios = np.array(
        [ratio_index(int(coded.counts[c]), int(excess[c])) for c in coded.live]
    )
    yield from symbols(ratios, RATIOS)
    far = gaps >> shifts
    pairs = np.minimum(far, GAPS - 1) * MAGNITUDES + tops
    for run, model in coded.models(ratios):
        yield from symbols(pairs[run], model)
    signs = negative.numpy()[order.places[at]]
    yield from plain_bits((gaps & (1 << shifts) - 1) << 1 | signs, shifts + 1)
    yield from escapes(far[far >= GAPS - 1] - (GAPS - 1))
    yield from escapes(values[values >= MAGNITUDES] - MAGNITUDES)


def read_coefficients(reader: SymbolReader, contexts: Tensor) -> tuple[Ints, Ints]:
    """Places and values of the coefficients that are not zero, given the flat contexts of all."""
    order = _Order(contexts)
    coded = _Coded(_read_counts(reader, order.sizes), order.sizes)
    ratios = reader.read(len(coded.live), RATIOS)
    pairs = np.empty(len(coded.context), np.int64)
    for run, model in coded.models(ratios):
        pairs[run] = reader.read(run.stop - run.start, model)
    far, values = pairs // MAGNITUDES, pairs % MAGNITUDES + 1
    shifts = coded.shifts[coded.context]
    tails = read_bits(reader, shifts + 1)
    far[far == GAPS - 1] += read_escapes(reader, int((far == GAPS - 1).sum()))
    values[values == MAGNITUDES] += read_escapes(
        reader, int((values == MAGNITUDES).sum())
    )
    if values.max(initial=0) > MOST_MAGNITUDE:
        raise PayloadError(
            f"a coefficient has {values.max()} steps; at most {MOST_MAGNITUDE} were wanted"
        )
    at = _places(far << shifts | tails >> 1, coded, order)
    return order.places[at], values * (1 - 2 * (tails & 1))


def _places(gaps: Ints, coded: _Coded, order: _Order) -> Ints:
    """Places by context from the gaps before them."""
    if gaps.max(initial=0) >= len(order.places):
        raise PayloadError("a gap is longer than the matrix")
    steps = np.cumsum(gaps + 1)
    before = np.append(0, steps)[coded.first]
    within = steps - before[coded.context] - 1
    if bool((within >= order.sizes[coded.context]).any()):
        raise PayloadError("a coefficient lies outside its context")
    places: Ints = within + order.starts[coded.context]
    return places


def _count_runs(counts: Ints, sizes: Ints) -> Iterator[Run]:
    """How many are not zero of each context that has coefficients: widths, then the bits below the highest."""
    used = sizes > 0
    widths = bit_lengths(counts[used])
    yield from symbols(widths, (bit_lengths(sizes[used]) + 1).astype(np.int32))
    below = np.maximum(widths - 1, 0)
    yield from plain_bits(counts[used] & (1 << below) - 1, below)


def _read_counts(reader: SymbolReader, sizes: Ints) -> Ints:
    counts, used = np.zeros(CONTEXTS, np.int64), sizes > 0
    levels = (bit_lengths(sizes[used]) + 1).astype(np.int32)
    widths = reader.read(len(levels), levels).astype(np.int64)
    below = np.maximum(widths - 1, 0)
    counts[used] = (widths > 0) << below | read_bits(reader, below)
    if bool((counts > sizes).any()):
        raise PayloadError("a context has more coefficients than entries")
    return counts
