"""Quantised coefficients, most of them zero, as runs of symbols.

Coefficients are taken context by context (`margins`), row-major in each. The receiver
knows the contexts, and learns of each context the count of coefficients that are not
zero (`counts`) and the index q of their ratio (`models`). Each of these has a gap of
zeros before it, within its context, and a magnitude. With S the low bits of a gap::

    pair  15 * min(gap >> S, 31) + min(magnitude, 15) - 1, one range-coded symbol
    tail  S low bits of the gap, then 1 if the coefficient is negative: plain bits

What is left of gaps with ``gap >> S >= 31`` and of magnitudes from 15 on follows in
escape codes, of all contexts together. See docs/splitfc-rd.md, "The method", 4, and
docs/wire-format.md, section 14, "Pairs".
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
from flwr_splitfc.codec.format.bits import Run, bit_runs, read_bits, symbol_runs
from flwr_splitfc.codec.format.symbols import SymbolReader
from flwr_splitfc.codec.quantisers.transform.counts import count_runs, read_counts
from flwr_splitfc.codec.quantisers.transform.integer_codes import (
    escape_runs,
    read_escapes,
)
from flwr_splitfc.codec.quantisers.transform.margins import CONTEXTS
from flwr_splitfc.codec.quantisers.transform.models import (
    GAPS,
    MAGNITUDES,
    RATIOS,
    gap_index,
    gap_shift,
    pair_model,
    ratio_index,
)

MOST_MAGNITUDE = 2**15
"""Steps; with more, sums of the inverse transform would not be exact."""

_LAST_GAP = GAPS - 1
"""The symbol of a gap from which on an escape code follows."""


class _Order:
    """The order in which coefficients are coded: by context, row-major in each.

    Parameters
    ----------
    contexts : Tensor of shape (n,)
        Of each coefficient, uint8.

    Attributes
    ----------
    places : ndarray of shape (n,)
        Where each coefficient of this order is in the batch.
    sizes, starts : ndarrays of shape (CONTEXTS,)
        How many coefficients each context has, and where in this order it starts.
    """

    def __init__(self, contexts: Tensor) -> None:
        sizes = torch.bincount(contexts, minlength=CONTEXTS)
        self.places: Ints = np.argsort(contexts.numpy(), kind="stable")
        self.sizes: Ints = sizes.numpy()
        self.starts = _starts(self.sizes)

    def counts(self, positions: Ints) -> Ints:
        """Return how many of these ascending positions are in each context."""
        bounds = [*self.starts, len(self.places)]
        before = np.searchsorted(positions, bounds)
        return np.diff(before)


def _starts(lengths: Ints) -> Ints:
    """Return where each of consecutive runs starts."""
    ends = np.cumsum(lengths)
    starts: Ints = ends - lengths
    return starts


class _Nonzeros:
    """The coefficients that are not zero, in their order, and their contexts' models.

    Parameters
    ----------
    counts : ndarray of shape (CONTEXTS,)
        How many there are in each context.
    order : _Order

    Attributes
    ----------
    contexts : ndarray of shape (nonzeros,)
        The context of each.
    live : list of int
        The contexts that have any.
    heads : ndarray
        Which of the nonzeros are the first ones of these contexts.
    shifts : ndarray of shape (nonzeros,)
        S for each.
    """

    def __init__(self, counts: Ints, order: _Order) -> None:
        self._counts = counts
        self._order = order
        self.contexts = np.repeat(np.arange(CONTEXTS), counts)
        live = np.flatnonzero(counts)
        self.live: list[int] = live.tolist()
        self._firsts = _starts(counts)
        self.heads = self._firsts[live]
        shifts = np.zeros(CONTEXTS, np.int64)
        for context in self.live:
            count, size = self._density(context)
            shifts[context] = gap_shift(count, size)
        self.shifts = shifts[self.contexts]

    def _density(self, context: int) -> tuple[int, int]:
        """Return how many coefficients of a context are not zero, and of how many."""
        count = self._counts[context]
        size = self._order.sizes[context]
        return int(count), int(size)

    def gaps(self, positions: Ints) -> Ints:
        """Return the zeros before each nonzero, given the positions in the order."""
        gaps = np.diff(positions, prepend=-1) - 1
        # the first of a context counts from the start of the context
        starts = self._order.starts[self.live]
        gaps[self.heads] = positions[self.heads] - starts
        return gaps

    def positions(self, gaps: Ints) -> Ints:
        """Return the positions in the order, given the zeros before each nonzero.

        Raises
        ------
        PayloadError
            If a position is beyond its context.
        """
        if gaps.max(initial=0) >= len(self._order.places):
            raise PayloadError("a gap is longer than the matrix")
        # ends of runs of a gap and its coefficient, one after the other
        ends = np.cumsum(gaps + 1)
        ends_before = np.append(0, ends)
        context_ends = ends_before[self._firsts]
        within = ends - context_ends[self.contexts] - 1
        sizes = self._order.sizes[self.contexts]
        if bool((within >= sizes).any()):
            raise PayloadError("a coefficient lies outside its context")
        starts = self._order.starts[self.contexts]
        positions: Ints = within + starts
        return positions

    def ratios(self, magnitudes: Ints) -> Ints:
        """Return the index q that fits the magnitudes of each live context."""
        # those of the symbols: what is beyond the last one is in an escape code
        excesses = np.minimum(magnitudes, MAGNITUDES) - 1
        sums = np.bincount(self.contexts, excesses, CONTEXTS)
        ratios = []
        for context in self.live:
            count = int(self._counts[context])
            excess = int(sums[context])
            ratios.append(ratio_index(count, excess))
        return np.array(ratios)

    def models(
        self, ratios: NDArray[Any]
    ) -> Iterator[tuple[slice, stream.model.Model]]:
        """Yield which of the nonzeros each live context has, and their pairs' model.

        Parameters
        ----------
        ratios : ndarray
            The index q of each live context.
        """
        for context, ratio in zip(self.live, ratios.tolist(), strict=True):
            first = int(self._firsts[context])
            count, size = self._density(context)
            own = slice(first, first + count)
            model = pair_model(gap_index(count, size), ratio)
            yield own, model


def coefficient_runs(
    magnitudes: Tensor, negative: Tensor, contexts: Tensor
) -> Iterator[Run]:
    """Yield coefficients as runs of symbols.

    Parameters
    ----------
    magnitudes : Tensor of shape (B C f,)
        Whole numbers of steps, float32 on the CPU, in the order of (B, C, f).
    negative : Tensor of shape (B C f,)
        Whether each is negative.
    contexts : Tensor of shape (B C f,)
        uint8.
    """
    order = _Order(contexts)
    # counts
    ordered = magnitudes.numpy()[order.places]
    positions = np.flatnonzero(ordered > 0)
    counts = order.counts(positions)
    nonzeros = _Nonzeros(counts, order)
    yield from count_runs(counts, order.sizes)

    # ratios
    sizes = ordered[positions].astype(np.int64)
    ratios = nonzeros.ratios(sizes)
    yield from symbol_runs(ratios, RATIOS)

    # pairs
    gaps = nonzeros.gaps(positions)
    shifts = nonzeros.shifts
    far = gaps >> shifts
    pairs = _pairs(far, sizes)
    for own, model in nonzeros.models(ratios):
        yield from symbol_runs(pairs[own], model)

    # tails
    low_masks = (1 << shifts) - 1
    low_bits = gaps & low_masks
    places = order.places[positions]
    is_negative = negative.numpy()[places]
    tails = low_bits << 1 | is_negative
    yield from bit_runs(tails, shifts + 1)

    # far gaps, large magnitudes
    yield from _escaped(far, _LAST_GAP)
    yield from _escaped(sizes, MAGNITUDES)


def _pairs(far: Ints, sizes: Ints) -> Ints:
    """Return the symbols of gaps without their low bits, and of magnitudes."""
    gap_symbols = np.minimum(far, _LAST_GAP)
    size_symbols = np.minimum(sizes, MAGNITUDES) - 1
    pairs: Ints = gap_symbols * MAGNITUDES + size_symbols
    return pairs


def _escaped(values: Ints, last: int) -> Iterator[Run]:
    """Yield what values at or beyond the last symbol have more than that."""
    escaped = values >= last
    yield from escape_runs(values[escaped] - last)


def read_coefficients(reader: SymbolReader, contexts: Tensor) -> tuple[Ints, Ints]:
    """Read the places and values of the coefficients that are not zero.

    Parameters
    ----------
    reader : SymbolReader
    contexts : Tensor of shape (B C f,)
        uint8, of all coefficients.

    Raises
    ------
    PayloadError
        If a magnitude is above 2^15, or a coefficient lies outside its context.
    """
    order = _Order(contexts)
    counts = read_counts(reader, order.sizes)
    nonzeros = _Nonzeros(counts, order)
    live = len(nonzeros.live)
    ratios = reader.read(live, RATIOS)
    pairs = np.empty_like(nonzeros.contexts)
    for own, model in nonzeros.models(ratios):
        count = own.stop - own.start
        pairs[own] = reader.read(count, model)
    shifts = nonzeros.shifts
    tails = read_bits(reader, shifts + 1)
    far = pairs // MAGNITUDES
    _add_escapes(reader, far, _LAST_GAP)
    sizes = pairs % MAGNITUDES + 1
    _add_escapes(reader, sizes, MAGNITUDES)
    if sizes.max(initial=0) > MOST_MAGNITUDE:
        raise PayloadError(
            f"a coefficient has {sizes.max()} steps; "
            f"at most {MOST_MAGNITUDE} were wanted"
        )
    low_bits = tails >> 1
    gaps = far << shifts | low_bits
    positions = nonzeros.positions(gaps)
    is_negative = tails & 1
    signs = 1 - 2 * is_negative
    return order.places[positions], sizes * signs


def _add_escapes(reader: SymbolReader, values: Ints, last: int) -> None:
    """Read what `_escaped` wrote, and add it to the values."""
    escaped = values == last
    count = int(escaped.sum())
    values[escaped] += read_escapes(reader, count)
