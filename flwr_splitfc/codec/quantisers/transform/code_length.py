"""About how many bits a batch takes with a step, without coding it.

With H(a, b) the bits of a sequence of a symbols of one kind and b of another::

    H(a, b) = a log2((a + b) / a) + b log2((a + b) / b)

a context of `size` coefficients of which n are not zero, with magnitudes that exceed 1
by e in all, takes about::

    H(n, size - n)      where they are: gaps are geometric
    H(n, e)             their magnitudes: geometric, too
    n                   their signs
    4 + 5 + log2 n      the count, and the index of the ratio; 4 without any
    8                   for each escape code of a magnitude

which is the entropy of the models in `models`. A margin takes 4 bits.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from flwr_splitfc.codec.arrays import Doubles, Ints
from flwr_splitfc.codec.quantisers.transform.context_order import CONTEXTS, ContextOrder
from flwr_splitfc.codec.quantisers.transform.dead_zone import (
    magnitudes_in_steps,
    nonzero_places,
)
from flwr_splitfc.codec.quantisers.transform.margins import Margins
from flwr_splitfc.codec.quantisers.transform.models import MAGNITUDES

_MARGIN_BITS = 4.0
_COUNT_WIDTH_BITS = 4
_RATIO_BITS = 5
_ESCAPE_BITS = 8


def estimated_bits(values: Tensor, step: float) -> float:
    """Estimate the code's length of (B, C, f) values with a step."""
    magnitudes = magnitudes_in_steps(values, step)
    if magnitudes.max() == 0:
        return 0.0
    margins = Margins.of(magnitudes)
    margin_bits = _MARGIN_BITS * margins.count
    return margin_bits + _coefficient_bits(magnitudes, margins.order())


def _coefficient_bits(magnitudes: Tensor, order: ContextOrder) -> float:
    """Estimate the bits of coefficients."""
    histogram = _histogram(magnitudes, order)
    sizes = order.sizes
    nonzeros = histogram.sum(1)
    # e counts m - 1 for each magnitude m; larger ones than 15 are in escape codes
    excess_of_level = np.arange(MAGNITUDES)
    excesses = histogram @ excess_of_level

    # H(n, size - n)
    places = _entropy_bits(nonzeros, sizes - nonzeros)
    # H(n, e)
    values = _entropy_bits(nonzeros, excesses)
    # a bit each
    signs = nonzeros
    headers = _header_bits(sizes, nonzeros)
    by_context = places + values + signs + headers
    escapes = histogram[:, -1].sum()
    escape_bits = _ESCAPE_BITS * escapes
    return float(by_context.sum() + escape_bits)


def _header_bits(sizes: Ints, nonzeros: Ints) -> Doubles:
    """Estimate what the count and the ratio of each context take."""
    is_used = sizes > 0
    is_live = nonzeros > 0
    count_bits = np.log2(np.maximum(nonzeros, 1))
    live_bits = _RATIO_BITS + count_bits
    bits: Doubles = _COUNT_WIDTH_BITS * is_used + is_live * live_bits
    return bits


def _histogram(magnitudes: Tensor, order: ContextOrder) -> Ints:
    """Count the magnitudes 1 to 15 of each context, 15 for larger ones, too."""
    places = nonzero_places(magnitudes)
    nonzero = magnitudes.numpy().ravel()[places]
    levels = np.minimum(nonzero, MAGNITUDES) - 1
    first_pairs = np.arange(CONTEXTS) * MAGNITUDES
    pairs = first_pairs[order.contexts(places)] + levels.astype(np.int64)
    counts = np.bincount(pairs, minlength=CONTEXTS * MAGNITUDES)
    return counts.reshape(CONTEXTS, MAGNITUDES)


def _entropy_bits(counts: Ints, others: Ints) -> Doubles:
    """Return H(counts, others)."""
    # at least 1, where 0 log2 0 = 0 is wanted
    wholes = np.maximum(counts + others, 1)
    some = np.maximum(counts, 1)
    # log2((a + b) / a)
    bits_of_one = np.log2(wholes / some)
    some_others = np.maximum(others, 1)
    bits_of_other = np.log2(wholes / some_others)
    bits: Doubles = counts * bits_of_one
    bits += others * bits_of_other
    return bits
