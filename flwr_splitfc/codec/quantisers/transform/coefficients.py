"""Quantised coefficients, most of them zero, as runs of symbols.

Coefficients are taken context by context, row-major in each (`context_order`). The
receiver knows the contexts, and learns of each context the count of coefficients that
are not zero (`counts`) and the index q of their ratio (`models`). Each of these has a
gap of zeros before it, within its context, and a magnitude. With S the low bits of a
gap::

    pair  15 * min(gap >> S, 31) + min(magnitude, 15) - 1, one range-coded symbol
    tail  S low bits of the gap, then 1 if the coefficient is negative: plain bits

What is left of gaps with ``gap >> S >= 31`` and of magnitudes from 15 on follows in
escape codes, of all contexts together. See docs/splitfc-rd.md, "The method", 4, and
docs/wire-format.md, section 14, "Pairs".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from flwr_splitfc.codec.arrays import Ints
from flwr_splitfc.codec.errors import PayloadError
from flwr_splitfc.codec.format.bits import (
    Group,
    Run,
    group_bit_runs,
    read_group_bits,
    symbol_runs,
)
from flwr_splitfc.codec.format.symbols import SymbolReader
from flwr_splitfc.codec.quantisers.transform.context_order import (
    ContextOrder,
    run_starts,
)
from flwr_splitfc.codec.quantisers.transform.counts import count_runs, read_counts
from flwr_splitfc.codec.quantisers.transform.integer_codes import (
    escape_runs,
    read_escapes,
)
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


class _LiveContext(NamedTuple):
    """A context with coefficients that are not zero.

    Parameters
    ----------
    own : slice
        Which of the nonzeros they are.
    nonzeros : int
        How many they are.
    gap : int
        The index g of the model of gaps.
    """

    own: slice
    nonzeros: int
    gap: int


class _Nonzeros:
    """The coefficients that are not zero, in their order, and their contexts' models.

    Parameters
    ----------
    counts : ndarray of shape (CONTEXTS,)
        How many there are in each context.
    order : ContextOrder

    Attributes
    ----------
    live : list
        The contexts that have any.
    shifts : ndarray of shape (nonzeros,)
        S for each.
    tails : list
        The bits of each live context's tails.
    """

    def __init__(self, counts: Ints, order: ContextOrder) -> None:
        self._order = order
        live = np.flatnonzero(counts)
        self._counts = counts[live]
        # of the first nonzeros of these contexts, and of the contexts in the order
        self._heads = run_starts(self._counts)
        self._starts = order.starts[live]
        self._sizes = order.sizes[live]
        self.live: list[_LiveContext] = []
        self.tails: list[Group] = []
        shifts = []
        # lists: a loop over them is quicker
        heads = self._heads.tolist()
        counts_of_live = self._counts.tolist()
        sizes = self._sizes.tolist()
        for head, count, size in zip(heads, counts_of_live, sizes, strict=True):
            own = slice(head, head + count)
            shift = gap_shift(count, size)
            gap = gap_index(count, size, shift)
            context = _LiveContext(own, count, gap)
            shifts.append(shift)
            self.live.append(context)
            self.tails.append((own, shift + 1))
        shift_of_each = np.array(shifts, np.int64)
        self.shifts = np.repeat(shift_of_each, self._counts)

    def gaps(self, positions: Ints) -> Ints:
        """Return the zeros before each nonzero, given the positions in the order."""
        gaps = np.diff(positions, prepend=-1) - 1
        # the first of a context counts from the start of the context
        gaps[self._heads] = positions[self._heads] - self._starts
        return gaps

    def positions(self, gaps: Ints) -> Ints:
        """Return the positions in the order, given the zeros before each nonzero.

        Raises
        ------
        PayloadError
            If a position is beyond its context.
        """
        if gaps.max(initial=0) >= self._order.count:
            raise PayloadError("a gap is longer than the matrix")
        # ends of runs of a gap and its coefficient, one after the other
        ends = np.cumsum(gaps + 1)
        ends_before = np.append(0, ends)
        lengths = np.diff(ends_before[np.append(self._heads, len(ends))])
        if bool((lengths > self._sizes).any()):
            raise PayloadError("a coefficient lies outside its context")
        shifts = self._starts - ends_before[self._heads] - 1
        positions: Ints = ends + np.repeat(shifts, self._counts)
        return positions

    def ratios(self, magnitudes: Ints) -> Ints:
        """Return the index q that fits the magnitudes of each live context."""
        # those of the symbols: what is beyond the last one is in an escape code
        excesses = np.minimum(magnitudes, MAGNITUDES) - 1
        ratios = []
        for context in self.live:
            excess = int(excesses[context.own].sum())
            ratios.append(ratio_index(context.nonzeros, excess))
        return np.array(ratios)


def coefficient_runs(places: Ints, values: Ints, order: ContextOrder) -> Iterator[Run]:
    """Yield coefficients as runs of symbols.

    Parameters
    ----------
    places : ndarray
        Where the coefficients that are not zero are in the batch, row-major, ascending.
    values : ndarray
        Whole numbers of steps, of these.
    order : ContextOrder
    """
    # counts
    positions, at = order.positions(places)
    counts = order.counts(positions)
    nonzeros = _Nonzeros(counts, order)
    yield from count_runs(counts, order.sizes)

    # ratios
    ordered = values[at]
    sizes = np.abs(ordered)
    ratios = nonzeros.ratios(sizes)
    yield from symbol_runs(ratios, RATIOS)

    # pairs
    gaps = nonzeros.gaps(positions)
    shifts = nonzeros.shifts
    far = gaps >> shifts
    pairs = _pairs(far, sizes)
    for context, ratio in zip(nonzeros.live, ratios.tolist(), strict=True):
        model = pair_model(context.gap, ratio)
        yield from symbol_runs(pairs[context.own], model)

    # tails
    low_bits = gaps - (far << shifts)
    tails = low_bits << 1 | (ordered < 0)
    yield from group_bit_runs(tails, nonzeros.tails)

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
    escaped = values[values >= last]
    yield from escape_runs(escaped - last)


def read_coefficients(reader: SymbolReader, order: ContextOrder) -> tuple[Ints, Ints]:
    """Read the places and values of the coefficients that are not zero.

    They are in the order of the contexts.

    Raises
    ------
    PayloadError
        If a magnitude is above 2^15, or a coefficient lies outside its context.
    """
    counts = read_counts(reader, order.sizes)
    nonzeros = _Nonzeros(counts, order)
    ratios = reader.read(len(nonzeros.live), RATIOS)
    shifts = nonzeros.shifts
    pairs = np.empty_like(shifts)
    for context, ratio in zip(nonzeros.live, ratios.tolist(), strict=True):
        model = pair_model(context.gap, ratio)
        pairs[context.own] = reader.read(context.nonzeros, model)
    tails = read_group_bits(reader, len(shifts), nonzeros.tails)
    far = pairs // MAGNITUDES
    sizes = pairs - far * MAGNITUDES + 1
    _add_escapes(reader, far, _LAST_GAP)
    _add_escapes(reader, sizes, MAGNITUDES)
    if sizes.max(initial=0) > MOST_MAGNITUDE:
        raise PayloadError(
            f"a coefficient has {sizes.max()} steps; "
            f"at most {MOST_MAGNITUDE} were wanted"
        )
    low_bits = tails >> 1
    gaps = (far << shifts) + low_bits
    positions = nonzeros.positions(gaps)
    is_negative = tails & 1
    signs = 1 - 2 * is_negative
    return order.places(positions), sizes * signs


def _add_escapes(reader: SymbolReader, values: Ints, last: int) -> None:
    """Read what `_escaped` wrote, and add it to the values."""
    escaped = np.flatnonzero(values == last)
    values[escaped] += read_escapes(reader, len(escaped))
