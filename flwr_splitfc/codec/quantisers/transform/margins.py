"""How large each coefficient is expected to be, and the probabilities that follow from it.

The expectation is a product of a row's, a direction's and a frequency's share, each a
power of 2^(1/2) that the receiver is told; coefficients of equal expectation make a
context. Everything is in integers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from constriction import stream
from numpy.typing import NDArray
from torch import Tensor

from flwr_splitfc.codec.arrays import Ints
from flwr_splitfc.codec.format.symbols import SYMBOL_PRECISION_BITS, sized_model

CONTEXTS = 40
LEAST_MARGIN, MOST_MARGIN, MOST_BASE = -14, 32, 14
"""Half octaves: a share of 2^-7 is taken for nothing."""

MAGNITUDES, GAPS = 15, 32
"""Symbols of a magnitude, 1 and up, and of a gap, 0 and up; the last of each goes on in an escape code."""

RATIOS = 32
"""Of neighbouring magnitudes' probabilities: (index + 1) / 33."""

MOST_SHIFT = 22
"""Bits of a gap that are sent as they are."""

_FIRST_CONTEXT = -26
_FIRST_BAND = 4
_GAP_RATIOS = 64
_WHOLE = 2**SYMBOL_PRECISION_BITS


def bands(directions: int) -> Iterator[slice]:
    """Directions that share a base and frequency margins: the first four, and the rest."""
    yield slice(0, min(_FIRST_BAND, directions))
    if directions > _FIRST_BAND:
        yield slice(_FIRST_BAND, directions)


def _half_octaves(share: Tensor) -> Ints:
    """``round(2 log2 share)``, -14 to 32."""
    least, most = 2.0 ** (LEAST_MARGIN / 2), 2.0 ** (MOST_MARGIN / 2)
    margins: Ints = (2 * share.clamp(least, most).log2()).round().long().numpy()
    return margins


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
        """Of quantised magnitudes, float32 (B, C, f) on the CPU, not all zero."""
        rows = magnitudes.mean((1, 2))
        columns = magnitudes.mean(0)
        bases, directions, frequencies = [], [], []
        for band in bands(len(columns)):
            mean = columns[band].mean().clamp_min(1e-30)
            bases.append(int(_half_octaves(mean).clip(-MOST_BASE, MOST_BASE)))
            directions.append(_half_octaves(columns[band].mean(1) / mean))
            frequencies.append(_half_octaves(columns[band].mean(0) / mean))
        return cls(
            _half_octaves(rows / rows.mean()),
            tuple(bases),
            np.concatenate(directions),
            np.stack(frequencies),
        )

    def contexts(self) -> Tensor:
        """The context of every coefficient, uint8 (B C f)."""
        shares = [
            base + self.directions[band, None] + frequencies
            for base, band, frequencies in zip(
                self.bases, bands(len(self.directions)), self.frequencies, strict=True
            )
        ]
        columns = torch.from_numpy(np.concatenate(shares).reshape(1, -1)).short()
        sums = torch.from_numpy(self.rows).short()[:, None] + columns
        return (sums - _FIRST_CONTEXT).clamp_(0, CONTEXTS - 1).byte().flatten()


# Probabilities, as integers of 2^-24 that add up to one


def gap_shift(count: int, size: int) -> int:
    """Low bits of a gap that are as good as even, where `count` of `size` coefficients are not zero.

    >>> gap_shift(1, 2), gap_shift(1, 4), gap_shift(10, 1000)
    (0, 1, 6)
    """
    return min(MOST_SHIFT, (size // (3 * count)).bit_length())


def gap_index(count: int, size: int) -> int:
    """Index of the ratio at which gaps, without their low bits, become rarer: (2 index + 1) / 128."""
    stays = ((size - count) << SYMBOL_PRECISION_BITS) // size
    for _ in range(gap_shift(count, size)):
        stays = stays * stays >> SYMBOL_PRECISION_BITS
    return stays * _GAP_RATIOS >> SYMBOL_PRECISION_BITS


def ratio_index(magnitudes: int, excess: int) -> int:
    """Index of the ratio that fits so many magnitudes, which exceed 1 by so much in all."""
    return min(max(round(33 * excess / max(excess + magnitudes, 1)) - 1, 0), RATIOS - 1)


@lru_cache
def magnitudes_model(zero_index: int, ratio: int, symbols: int) -> stream.model.Model:
    """0 with probability 1 - (zero index + 1) / 65, then 1 and up, rarer by the ratio."""
    others = _WHOLE * (zero_index + 1) // 65
    return sized_model(
        np.array([_WHOLE - others, *_falling(others, 32 - ratio, 33, symbols - 1)])
    )


@lru_cache(4096)
def nonzeros_model(gap: int, ratio: int) -> stream.model.Model:
    """A gap and a magnitude as one symbol, ``15 gap + magnitude - 1``."""
    gaps = np.array(_falling(_WHOLE, 127 - 2 * gap, 128, GAPS))
    magnitudes = np.array(_falling(_WHOLE, 32 - ratio, 33, MAGNITUDES))
    sizes = np.maximum(np.outer(gaps, magnitudes).ravel() >> SYMBOL_PRECISION_BITS, 1)
    sizes[0] += _WHOLE - sizes.sum()
    return sized_model(sizes)


def _falling(whole: int, part: int, parts: int, symbols: int) -> list[int]:
    """`whole` in so many pieces: each is part / parts of what is left, the last all of it, and none is 0."""
    sizes = []
    for left in range(symbols - 1, 0, -1):
        sizes.append(min(max(whole * part // parts, 1), whole - left))
        whole -= sizes[-1]
    return [*sizes, whole]


def coded_bits(contexts: Tensor, magnitudes: Tensor) -> float:
    """About how many bits coefficients take, contexts and magnitudes as flat tensors."""
    pairs = (
        contexts.short() * (MAGNITUDES + 1) + magnitudes.clamp_max(MAGNITUDES).short()
    )
    counts = (
        torch.bincount(pairs, minlength=CONTEXTS * (MAGNITUDES + 1))
        .numpy()
        .reshape(CONTEXTS, -1)
    )
    size, zeros = counts.sum(1), counts[:, 0]
    nonzero = size - zeros
    excess = counts[:, 1:] @ np.arange(MAGNITUDES)
    places = _entropy_bits(nonzero, zeros)
    values = _entropy_bits(nonzero, excess)
    headers = 4 * (size > 0) + (nonzero > 0) * (5 + np.log2(np.maximum(nonzero, 1)))
    return float(
        (places + values + nonzero + headers).sum() + 8 * counts[:, MAGNITUDES].sum()
    )


def _entropy_bits(count: Ints, others: Ints) -> NDArray[np.float64]:
    """Of a sequence with so many of one symbol and so many of another."""
    whole = np.maximum(count + others, 1)
    bits: NDArray[np.float64] = count * np.log2(whole / np.maximum(count, 1))
    bits += others * np.log2(whole / np.maximum(others, 1))
    return bits
