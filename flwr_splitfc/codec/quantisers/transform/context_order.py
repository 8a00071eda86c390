"""The order in which coefficients are coded: by context, row-major in each.

Rows of equal margins have equal contexts in all columns: they are of one kind, of which
there are few. So contexts are sorted by kind and not for each coefficient. In the order
follow, one after the other, runs of columns: for each context, and in it for each row,
those columns of the row that have the context. They stand together among the sorted
columns of the row's kind, too. By how much a run begins later there than in the order
is its shift::

    (place among the sorted columns of all kinds)  =  (position in the order) + shift
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np

from flwr_splitfc.codec.arrays import Ints, Octets

CONTEXTS = 40


class _Runs(NamedTuple):
    """The runs of an order, one after the other; none is empty.

    Parameters
    ----------
    keys : ndarray
        ``context B + row``, ascending.
    rows : ndarray
    starts : ndarray
        Where they start in the order.
    shifts : ndarray
    """

    keys: Ints
    rows: Ints
    starts: Ints
    shifts: Ints

    @classmethod
    def of(cls, lengths_by_kind: Ints, kinds: Ints) -> _Runs:
        """Find the runs of rows of these kinds, by the kind's (kinds, CONTEXTS)."""
        kind, context = lengths_by_kind.nonzero()
        lengths = lengths_by_kind[kind, context]
        # those of a kind, one after the other, for each of its rows
        counts_by_kind = np.bincount(kind)
        counts = counts_by_kind[kinds]
        firsts = run_starts(counts_by_kind)[kinds]
        rows = np.repeat(np.arange(len(kinds)), counts)
        which = np.arange(len(rows)) + np.repeat(firsts - run_starts(counts), counts)
        # then by context
        by_context = _stable_order(context[which].astype(np.uint8))
        which = which[by_context]
        rows = rows[by_context]
        starts = run_starts(lengths[which])
        return cls(
            keys=context[which] * len(kinds) + rows,
            rows=rows,
            starts=starts,
            shifts=run_starts(lengths)[which] - starts,
        )


class ContextOrder:
    """The order of (B, D) coefficients.

    Parameters
    ----------
    contexts : ndarray of shape (kinds, D)
        uint8, of the columns of each kind of row.
    kinds : ndarray of shape (B,)
        Of each row.

    Attributes
    ----------
    sizes, starts : ndarrays of shape (CONTEXTS,)
        How many coefficients each context has, and where in the order it starts.

    Examples
    --------
    >>> contexts = np.array([[1, 0, 1]], np.uint8)
    >>> order = ContextOrder(contexts, kinds=np.array([0, 0]))
    >>> order.places(np.arange(6)).tolist()
    [1, 4, 0, 2, 3, 5]
    """

    def __init__(self, contexts: Octets, kinds: Ints) -> None:
        self._contexts = contexts
        self._kinds = kinds
        self._columns: int = contexts.shape[1]
        self._lengths_by_kind = np.stack([_histogram(own) for own in contexts])
        rows_by_kind = np.bincount(kinds, minlength=len(contexts))
        self.sizes: Ints = rows_by_kind @ self._lengths_by_kind
        self.starts = run_starts(self.sizes)

    # The next two are for coding alone: to estimate its length is to know the sizes.

    @cached_property
    def _runs(self) -> _Runs:
        return _Runs.of(self._lengths_by_kind, self._kinds)

    @cached_property
    def _sorted_columns(self) -> Ints:
        """The columns of each kind, by context."""
        return _stable_order(self._contexts).ravel()

    @property
    def count(self) -> int:
        """How many coefficients there are, ``B D``."""
        return len(self._kinds) * self._columns

    def places(self, positions: Ints) -> Ints:
        """Return the places in the batch, row-major, of ascending positions."""
        runs = self._runs
        counts = _counts_of_runs(positions, runs.starts)
        among_sorted = positions + np.repeat(runs.shifts, counts)
        row_starts = self._columns * runs.rows
        places: Ints = self._sorted_columns[among_sorted]
        places += np.repeat(row_starts, counts)
        return places

    def positions(self, places: Ints) -> tuple[Ints, Ints]:
        """Return the positions of ascending places, ascending, too.

        Returns
        -------
        positions : ndarray
        at : ndarray
            Which of the places is at each of the positions.
        """
        rows, in_kinds = self._located(places)
        contexts = self._contexts.ravel()[in_kinds]
        # before numpy 2, a product of bytes and a number that fits a byte wraps
        keys = contexts.astype(np.int64) * len(self._kinds) + rows
        at = _stable_order(contexts)
        counts = _counts_of_runs(keys[at], self._runs.keys)
        among_sorted = self._places_among_sorted()[in_kinds[at]]
        return among_sorted - np.repeat(self._runs.shifts, counts), at

    def _places_among_sorted(self) -> Ints:
        """Return where the columns of all kinds are after they were sorted."""
        by_kind = self._sorted_columns.reshape(-1, self._columns)
        kind_starts = self._columns * np.arange(len(by_kind))
        sorted_columns = by_kind + kind_starts[:, None]
        places = np.empty_like(self._sorted_columns)
        places[sorted_columns.ravel()] = np.arange(len(places))
        return places

    def counts(self, positions: Ints) -> Ints:
        """Return how many of ascending positions are in each context."""
        return _counts_of_runs(positions, self.starts)

    def contexts(self, places: Ints) -> Octets:
        """Return the contexts of ascending places."""
        _, in_kinds = self._located(places)
        contexts: Octets = self._contexts.ravel()[in_kinds]
        return contexts

    def _located(self, places: Ints) -> tuple[Ints, Ints]:
        """Return the rows of ascending places, and where their contexts are."""
        rows = np.arange(len(self._kinds))
        counts = _counts_of_runs(places, self._columns * rows)
        shifts = self._columns * (self._kinds - rows)
        return np.repeat(rows, counts), places + np.repeat(shifts, counts)


def run_starts(lengths: Ints) -> Ints:
    """Return where each of consecutive runs starts."""
    ends = np.cumsum(lengths)
    starts: Ints = ends - lengths
    return starts


def _stable_order(contexts: Octets) -> Ints:
    """Return the indices that sort contexts along the last axis."""
    # numpy sorts integers of 8 bits in linear time, if the sort has to be stable
    return np.argsort(contexts, axis=-1, kind="stable")


def _histogram(contexts: Octets) -> Ints:
    return np.bincount(contexts, minlength=CONTEXTS)


def _counts_of_runs(positions: Ints, starts: Ints) -> Ints:
    """Return how many of ascending positions are in each of consecutive runs."""
    before = np.searchsorted(positions, starts)
    return np.diff(before, append=len(positions))
