"""How large each coefficient is expected to be, which decides its context.

The expected magnitude of a coefficient is a product of a base and of the shares of its
row, its direction and its frequency, each a power of 2^(1/2)::

    E |x(row, direction, frequency)| / step  =  2^((r + b + d + f) / 2)

    r = round(2 log2 (mean of the row / mean of all))
    b = round(2 log2 (mean of the band, in steps))
    d = round(2 log2 (mean of the direction / mean of the band))
    f = round(2 log2 (mean of the frequency within the band / mean of the band))

Means are of quantised magnitudes. r, d and f are the margins, as those of a table. The
leading directions, whose frequencies fall differently, make a band of their own.

Coefficients of equal expectation share a context, ``r + b + d + f + 26``, cut to 0 to
39, and with it the parameters of their models (`models`). The receiver is told the
margins. See docs/splitfc-rd.md, "The method", 4, and docs/wire-format.md, section 14,
"Contexts".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flwr_splitfc.codec.arrays import Ints
from flwr_splitfc.codec.errors import PayloadError
from flwr_splitfc.codec.format.bits import Run, symbol_runs
from flwr_splitfc.codec.format.symbols import SymbolReader
from flwr_splitfc.codec.quantisers.transform.context_order import CONTEXTS, ContextOrder
from flwr_splitfc.codec.quantisers.transform.integer_codes import (
    read_signed,
    signed_runs,
)

LEAST_MARGIN = -14
"""Half octaves; a share below 2^-7 counts as 2^-7."""

MOST_MARGIN = 32
"""Half octaves."""

MOST_BASE = 14
"""Half octaves, above or below a mean magnitude of one step."""

_FIRST_CONTEXT = -26
"""The expectation of context 0 in half octaves; smaller ones are in it, too."""

_FIRST_BAND = 4
"""Directions in the band of the leading ones."""

_MARGIN_RANGE = MOST_MARGIN - LEAST_MARGIN
"""The largest difference of two margins."""

_BASES = 2 * MOST_BASE + 1

_LEAST_MEAN = 1e-30
"""Stands for the mean of a band of zeros, by which its margins are divided."""


def bands(directions: int) -> Iterator[slice]:
    """Yield the directions that share a base and frequency margins.

    These are the first four, and the others if there are any.
    """
    yield slice(0, min(_FIRST_BAND, directions))
    if directions > _FIRST_BAND:
        yield slice(_FIRST_BAND, directions)


@dataclass(frozen=True, eq=False)
class Margins:
    """Expected magnitudes by row, direction and frequency, in half octaves.

    Parameters
    ----------
    rows : ndarray of shape (B,)
        Relative to the mean of all.
    bases : tuple of int
        Mean magnitude of each band, in steps; -14 to 14.
    directions : ndarray of shape (C,)
        Relative to the band's mean.
    frequencies : ndarray of shape (bands, f)
        Relative to the band's mean.
    """

    rows: Ints
    bases: tuple[int, ...]
    directions: Ints
    frequencies: Ints

    @classmethod
    def of(cls, magnitudes: Tensor) -> Margins:
        """Measure quantised magnitudes, float32 (B, C, f) on the CPU, not all zero."""
        by_row = magnitudes.mean((1, 2))
        columns = magnitudes.mean(0)
        # r
        shares = [by_row / by_row.mean()]
        for band in bands(len(columns)):
            means = columns[band]
            mean = means.mean().view(1).clamp_min(_LEAST_MEAN)
            # b, d and f of the band
            shares += [mean, means.mean(1) / mean, means.mean(0) / mean]
        rows, *by_band = _half_octaves(shares)
        bases = [int(base[0]) for base in by_band[::3]]
        return cls(
            rows=rows,
            bases=tuple(np.clip(bases, -MOST_BASE, MOST_BASE).tolist()),
            directions=np.concatenate(by_band[1::3]),
            frequencies=np.stack(by_band[2::3]),
        )

    @property
    def count(self) -> int:
        """How many margins there are to send, without the bases."""
        return self.rows.size + self.directions.size + self.frequencies.size

    def order(self) -> ContextOrder:
        """Return the order of the coefficients, in which they have their contexts."""
        row_margins, kinds = np.unique(self.rows, return_inverse=True)
        # 16 bits hold the sums, and narrow integers are computed with faster
        columns = self._columns().astype(np.int16)
        half_octaves = row_margins.astype(np.int16)[:, None] + columns
        contexts = half_octaves - np.int16(_FIRST_CONTEXT)
        in_range = contexts.clip(0, CONTEXTS - 1)
        return ContextOrder(in_range.astype(np.uint8), kinds)

    def _columns(self) -> Ints:
        """Return the half octaves of every direction and frequency, (C f)."""
        by_band = []
        for band, own in enumerate(bands(len(self.directions))):
            directions = self.directions[own, None]
            frequencies = self.frequencies[band]
            by_band.append(self.bases[band] + directions + frequencies)
        return np.concatenate(by_band).ravel()


def margin_runs(margins: Margins) -> Iterator[Run]:
    """Yield rows and bases, then directions and frequencies.

    The last two go as differences from their neighbours, which are often like them.
    """
    yield from signed_runs(margins.rows, _MARGIN_RANGE)
    bases = np.array(margins.bases)
    yield from symbol_runs(bases + MOST_BASE, _BASES)
    yield from _difference_runs(margins.directions)
    for frequencies in margins.frequencies:
        yield from _difference_runs(frequencies)


def read_margins(
    reader: SymbolReader, rows: int, directions: int, places: int
) -> Margins:
    """Read what `margin_runs` wrote of a (B, C, f) batch.

    Raises
    ------
    PayloadError
        If a margin is not -14 to 32.
    """
    by_row = read_signed(reader, rows, _MARGIN_RANGE)
    band_count = len(list(bands(directions)))
    bases = reader.read(band_count, _BASES) - MOST_BASE
    by_direction = _read_differences(reader, directions)
    by_frequency = [_read_differences(reader, places) for _ in bases]
    for margins in (by_row, by_direction, *by_frequency):
        if margins.min() < LEAST_MARGIN or margins.max() > MOST_MARGIN:
            raise PayloadError(f"a margin is not {LEAST_MARGIN} to {MOST_MARGIN}")
    return Margins(
        rows=by_row,
        bases=tuple(bases.tolist()),
        directions=by_direction,
        frequencies=np.stack(by_frequency),
    )


def _difference_runs(margins: Ints) -> Iterator[Run]:
    differences = np.diff(margins, prepend=0)
    yield from signed_runs(differences, _MARGIN_RANGE)


def _read_differences(reader: SymbolReader, count: int) -> Ints:
    differences = read_signed(reader, count, _MARGIN_RANGE)
    return np.cumsum(differences)


def _half_octaves(shares: Sequence[Tensor]) -> list[Ints]:
    """Return ``round(2 log2 share)``, -14 to 32, of several tensors of shares."""
    least = 2.0 ** (LEAST_MARGIN / 2)
    most = 2.0 ** (MOST_MARGIN / 2)
    # all at once: they are few, and a call takes longer than its computing
    octaves = torch.cat(list(shares)).clamp_(least, most).log2_()
    margins = octaves.mul_(2).round_().long()
    lengths = [len(share) for share in shares]
    return [part.numpy() for part in margins.split(lengths)]
