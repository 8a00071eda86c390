"""How a budget is spent on columns (SplitFC, Sec. V): which get two stages, and how many levels each.

Everything here runs at the sender alone and over the 200 classes of column spans, never
over columns: a column that spans n grid steps costs and errs like any other of the n-th
class.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from flwr_splitfc.codec.arrays import Doubles, Ints
from flwr_splitfc.codec.format.symbols import (
    SYMBOL_OVERHEAD_BITS,
    level_bits,
    usable_bits,
)
from flwr_splitfc.codec.quantisers.feature.endpoints import endpoints
from flwr_splitfc.codec.quantisers.feature.header import (
    ENDPOINT_LEVELS,
    QuantHeader,
    Upgrades,
    quant_header_bytes,
)
from flwr_splitfc.codec.quantisers.feature.levels import (
    best_level,
    column_levels,
    floor_level,
    span_squares,
    upgrade_order,
)

_CANDIDATES = 10
_OCTAVE_STEPS = 4
_BISECTION = 128, 64, 32, 16, 8, 4, 2, 1
_BLOCK_COLUMNS = 2**13
_GIVEN_BACK, _MOST_SKIPPED, _MOST_MORE = 15, 31, 255
"""How far upgrades are moved to columns that fit better."""


@dataclass(frozen=True, eq=False)
class Plan:
    """All that is decided before entries are quantised.

    Parameters
    ----------
    header : QuantHeader
        The settings that are sent.
    endpoints : ndarray
        Interval of each two-stage column on the endpoint grid, int64 (M, 2).
    """

    header: QuantHeader
    endpoints: Ints

    @property
    def levels(self) -> Ints:
        """Levels of each two-stage column, (M,)."""
        steps = self.endpoints[:, 1] - self.endpoints[:, 0]
        return column_levels(steps, self.header.multiplier, self.header.upgrades)

    @property
    def is_smallest(self) -> bool:
        """Whether no payload of this shape is smaller: means alone, two levels at most."""
        return len(self.header.two_stage) == 0 and self.header.mean_levels <= 2


@cache
def _multipliers() -> Doubles:
    """A coarse range, as float32: every span has 2 levels at its low end and 2^16 at its high end."""
    return np.asarray(2.0 ** np.arange(-16, 33, 1 / _OCTAVE_STEPS), np.float32).astype(
        np.float64
    )


@cache
def _class_tables() -> tuple[Doubles, Doubles]:
    """Bits of an entry, and error bound of a column row in squared grid steps: (multiplier, class)."""
    levels = best_level(_multipliers()[:, None] * span_squares())
    bits = level_bits()[levels]
    bits[:, 0] = 0.0
    return bits, span_squares() / (4.0 * (levels - 1) ** 2)


@dataclass(frozen=True, eq=False)
class _Candidates:
    """Ways to split K columns into M two-stage ones, the widest, and means; arrays run over the ways."""

    rows: int
    columns: int
    counts: Ints
    low: Doubles
    high: Doubles
    mean_low: Doubles
    mean_high: Doubles
    histograms: Doubles
    mean_only_error: Doubles
    entry_bits: Doubles

    @cached_property
    def units(self) -> Doubles:
        """Grid step; where all two-stage columns are one point, the span of the means serves."""
        steps = (self.high - self.low) / (ENDPOINT_LEVELS - 1)
        spans = self.mean_high - self.mean_low
        return np.where(steps > 0, steps, np.where(spans > 0, spans, 1.0))

    @cached_property
    def mean_squares(self) -> Doubles:
        """``n^2`` of the means' span: ``u_0 = m n^2`` with ``n^2 = 2 B (a_0 / step)^2``."""
        return 2.0 * self.rows * ((self.mean_high - self.mean_low) / self.units) ** 2

    @cached_property
    def mean_counts(self) -> Ints:
        """Means that cost bits."""
        return np.where(self.mean_high > self.mean_low, self.columns - self.counts, 0)

    @cached_property
    def mean_limits(self) -> Ints:
        """Most levels for the means with two levels for all entries."""
        left = self.entry_bits - self.rows * self.histograms[:, 1:].sum(1)
        with np.errstate(divide="ignore", invalid="ignore"):
            affordable = np.where(self.mean_counts > 0, left / self.mean_counts, 0.0)
        return np.asarray(
            np.maximum(2, np.searchsorted(level_bits(), affordable, side="right") - 1)
        )


def _two_stage_counts(columns: int, rows: int, budget_bytes: int) -> Ints:
    """Tenths of the columns that could have two levels each, and none at all."""
    header_bytes = quant_header_bytes(0, columns) + quant_header_bytes(columns, columns)
    room = usable_bits(budget_bytes - header_bytes - columns // 8, columns) - columns
    column_bits = (
        rows * (1 + SYMBOL_OVERHEAD_BITS) + 2 * float(np.log2(ENDPOINT_LEVELS)) - 1
    )
    most = int(room // column_bits)
    most = min(max(most, 0), columns)
    return np.unique(most * np.arange(_CANDIDATES + 1) // _CANDIDATES)


def _candidates(
    low: Doubles, high: Doubles, mean: Doubles, rows: int, budget_bytes: int
) -> _Candidates:
    """Set up the ways to split columns that are sorted by falling range."""
    columns = len(low)
    counts = _two_stage_counts(columns, rows, budget_bytes)
    grid_low = _prefix(np.minimum.accumulate(low), counts)
    grid_high = _prefix(np.maximum.accumulate(high), counts)
    stream_bits = [
        usable_bits(
            budget_bytes - quant_header_bytes(count, columns),
            columns + (rows + 1) * count,
        )
        for count in counts.tolist()
    ]
    endpoint_bits = 2 * counts * level_bits()[ENDPOINT_LEVELS]
    return _Candidates(
        rows,
        columns,
        counts,
        grid_low,
        grid_high,
        _suffix(np.minimum.accumulate(mean[::-1])[::-1], counts),
        _suffix(np.maximum.accumulate(mean[::-1])[::-1], counts),
        _histograms(low, high, counts, grid_low, grid_high),
        rows / 2 * _suffix(np.cumsum((high - low)[::-1] ** 2)[::-1], counts),
        np.array(stream_bits) - endpoint_bits,
    )


def _histograms(
    low: Doubles, high: Doubles, counts: Ints, grid_low: Doubles, grid_high: Doubles
) -> Doubles:
    """How many of the first M columns are in each class, (ways, classes); in blocks that stay in the cache."""
    histograms = np.zeros((len(counts), ENDPOINT_LEVELS))
    for start in range(0, int(counts[-1]), _BLOCK_COLUMNS):
        end = min(start + _BLOCK_COLUMNS, int(counts[-1]))
        first, last = endpoints(
            low[start:end], high[start:end], grid_low[:, None], grid_high[:, None]
        )
        inside = np.arange(start, end) < counts[:, None]
        bins = (last - first + ENDPOINT_LEVELS * np.arange(len(counts))[:, None])[
            inside
        ]
        histograms += np.bincount(bins, minlength=histograms.size).reshape(
            histograms.shape
        )
    return histograms


def _prefix(accumulated: Doubles, counts: Ints) -> Doubles:
    """The value over the first M columns; 0 for none."""
    return np.append(accumulated, 0.0)[counts - 1]


def _suffix(accumulated: Doubles, counts: Ints) -> Doubles:
    """The value over all but the first M columns; 0 for none."""
    return np.append(accumulated, 0.0)[counts]


def _best_candidate(ways: _Candidates) -> tuple[int, int]:
    """The way with the least error bound, and the last coarse multiplier that it can afford."""
    class_bits, class_errors = _class_tables()
    last = len(_multipliers()) - 1

    def mean_levels(index: Ints) -> Ints:
        return np.minimum(
            best_level(ways.mean_squares * _multipliers()[index]), ways.mean_limits
        )

    def bits(index: Ints) -> Doubles:
        entries = np.einsum("cn,cn->c", ways.histograms, class_bits[index])
        return np.asarray(
            ways.rows * entries + ways.mean_counts * level_bits()[mean_levels(index)]
        )

    def errors(index: Ints) -> Doubles:
        entries = np.einsum("cn,cn->c", ways.histograms, class_errors[index])
        means = (
            ways.mean_counts * ways.mean_squares / (4 * (mean_levels(index) - 1.0) ** 2)
        )
        return np.asarray((ways.rows * entries + means) * ways.units**2)

    affordable = np.zeros_like(ways.counts)
    for step in _BISECTION:
        higher = np.minimum(affordable + step, last)
        affordable = np.where(bits(higher) <= ways.entry_bits, higher, affordable)
    following = np.minimum(affordable + 1, last)
    spent = bits(affordable)
    extra = bits(following) - spent
    left = ways.entry_bits - spent
    share = np.clip(
        np.divide(left, extra, out=np.zeros_like(left), where=extra > 0), 0, 1
    )
    error = (
        (1 - share) * errors(affordable)
        + share * errors(following)
        + ways.mean_only_error
    )
    best = int(np.argmin(error))
    return best, int(affordable[best])


def _spend(ways: _Candidates, way: int, start: int) -> tuple[float, int, float]:
    """Bisect the multiplier until one level of one class makes the difference.

    Returns the multiplier, the levels of the means and the bits that are left for
    entries.
    """
    classes = np.flatnonzero(ways.histograms[way])
    classes = classes[classes > 0]
    squares = np.append(span_squares()[classes], ways.mean_squares[way])
    weights = np.append(
        ways.rows * ways.histograms[way, classes], ways.mean_counts[way]
    )
    limits = np.append(np.full(len(classes), 2**16), ways.mean_limits[way])
    bits_available, table = float(ways.entry_bits[way]), level_bits()

    def levels_at(multiplier: float) -> Ints:
        return np.asarray(np.minimum(best_level(squares * multiplier), limits))

    grid = _multipliers()
    good, bad = float(grid[start]), float(grid[min(start + 1, len(grid) - 1)])
    good_levels, bad_levels = levels_at(good), levels_at(bad)
    while (bad_levels - good_levels).sum() > 1:
        middle = float(np.float32((good + bad) / 2))
        if not good < middle < bad:
            break
        levels = levels_at(middle)
        if weights @ table[levels] <= bits_available:
            good, good_levels = middle, levels
        else:
            bad, bad_levels = middle, levels
    mean_levels = int(good_levels[-1]) if ways.mean_counts[way] else 1
    return (
        good,
        mean_levels,
        bits_available - float(ways.mean_counts[way]) * float(table[mean_levels]),
    )


def _affordable_upgrades(
    steps: Ints, multiplier: float, rows: int, bits_available: float
) -> Upgrades:
    """The upgrades that remove most error: as many as fit, or fewer and then cheaper ones.

    Without the latter, bits for up to one upgrade of the next column are left over,
    which is 2 % of the error with 40 columns.
    """
    table = level_bits()
    floors = floor_level(multiplier * span_squares()[steps])
    order = upgrade_order(steps, multiplier)
    left = bits_available - rows * float(table[floors[steps > 0]].sum())
    level = floors[order]
    bits = np.append(0.0, np.cumsum(rows * (table[level + 1] - table[level])))
    gains = np.append(
        0.0,
        np.cumsum(
            span_squares()[steps[order]] * (1 / (level - 1.0) ** 2 - 1.0 / level**2)
        ),
    )
    most = max(int(np.searchsorted(bits, left, side="right")) - 1, 0)

    first = np.arange(most, max(most - _GIVEN_BACK, 0) - 1, -1)[:, None]
    start = np.minimum(first + np.arange(_MOST_SKIPPED + 1), len(order))
    end = np.searchsorted(bits, bits[start] + left - bits[first], side="right") - 1
    end = np.clip(end, start, start + _MOST_MORE)
    best, skipped = np.unravel_index(
        np.argmax(gains[first] + gains[end] - gains[start]), start.shape
    )
    more = int((end - start)[best, skipped])
    if skipped == 0 or more == 0:
        return Upgrades(most)
    return Upgrades(int(first[best, 0]), int(skipped), more)


def _by_falling_range(ranges: Doubles) -> Ints:
    """Columns from wide to narrow, in their order where equal, in linear time: numpy sorts 16 bits by radix."""
    bits = ~ranges.astype(np.float32).view(np.uint32)
    order = np.argsort(bits.astype(np.uint16), kind="stable")
    return order[np.argsort((bits >> 16).astype(np.uint16)[order], kind="stable")]


def plan_budget(
    low: Doubles, high: Doubles, mean: Doubles, rows: int, budget_bytes: int
) -> Plan:
    """Decide how a feature-quantised (B, K) matrix is coded in about `budget_bytes`.

    Parameters
    ----------
    low, high, mean : ndarray
        Of each column, float64 (K,), representable in float32.
    rows : int
        ``B``.
    budget_bytes : int
        The range coder may need a word more; below the smallest payload the plan is the
        smallest.
    """
    order = _by_falling_range(high - low)
    ways = _candidates(low[order], high[order], mean[order], rows, budget_bytes)
    way, start = _best_candidate(ways)
    multiplier, mean_levels, entry_bits = _spend(ways, way, start)
    two_stage = np.sort(order[: ways.counts[way]])
    grid_low, grid_high = float(ways.low[way]), float(ways.high[way])
    intervals = np.stack(
        endpoints(low[two_stage], high[two_stage], grid_low, grid_high), 1
    )
    steps = intervals[:, 1] - intervals[:, 0]
    header = QuantHeader(
        two_stage,
        grid_low,
        grid_high,
        multiplier,
        _affordable_upgrades(steps, multiplier, rows, entry_bits),
        float(ways.mean_low[way]),
        float(ways.mean_high[way]),
        mean_levels,
    )
    return Plan(header, intervals)
