"""The number of levels that is best for a column (SplitFC, 2307.10805, Sec. V).

With the price ``nu`` of a bit, a two-stage column with interval ``a`` has the number of
levels ``Q`` that minimises, for each of its entries,

    a^2 / (4 (Q - 1)^2) + nu log2 Q         error bound plus price of the bits

Among the real numbers the minimum is the root above 1 of

    (Q - 1)^3 = u Q,    u = a^2 ln2 / (2 nu)                                    (11)

for which `optimal_level` has the paper's closed form, (12) and (13). What is sent are
integers. `floor_level` is the integer part of the root and `best_level` the integer
that minimises the sum itself; both look ``u`` up in a sorted table of thresholds:

    T[q] = (q - 1)^3 / q                              the root reaches q        (14)
    S[q] = 2 ln((q+1)/q) ((q-1) q)^2 / (2q-1)         q + 1 is better than q    (15)

``T[q] <= S[q] <= T[q+1]``, so that the best integer is the integer part or one more.
The tables are made by IEEE arithmetic alone, and every machine finds the same levels.
Numbers in parentheses are those of the equations in docs/splitfc.md.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import ArrayLike

from flwr_splitfc.codec.arrays import Doubles, Ints
from flwr_splitfc.codec.format.symbols import MOST_LEVELS
from flwr_splitfc.codec.quantisers.feature.header import ENDPOINT_LEVELS

FEWEST_LEVELS = 2

_CARDANO_LIMIT = 27 / 4
"""Up to this ``u`` the cubic has one real root; above it has three."""

_LOG_TERMS = 14
"""Terms of the series for ``ln((q+1)/q)``: enough for doubles from q = 2 on."""


def optimal_level(u: ArrayLike) -> Doubles:
    """Return the optimal real number of levels, the root above 1 of (11).

    This is the reference for the tables. It is not bit-exact across machines, and no
    byte of a payload depends on it.

    Parameters
    ----------
    u : array_like
        ``a^2 ln2 / (2 nu)`` of a column with interval ``a`` at the price ``nu`` of a
        bit; positive.

    Examples
    --------
    >>> optimal_level([0.001, 0.5, 1, 6.75, 10, 1000]).round(7).tolist()
    [1.1033321, 2.0, 2.324718, 4.0, 4.5770894, 33.1113935]
    """
    u = np.asarray(u, np.float64)
    # each formula is evaluated only where its roots are real
    small = np.minimum(u, _CARDANO_LIMIT)
    large = np.maximum(u, _CARDANO_LIMIT)
    root: Doubles = np.where(
        u <= _CARDANO_LIMIT, _cardano_root(small), _cosine_root(large)
    )
    return root


def _cardano_root(u: Doubles) -> Doubles:
    """The only real root, by Cardano's formula (12)."""
    # not below 0 by rounding at u = 27/4
    discriminant_root = np.sqrt(np.maximum(81 - 12 * u, 0))
    v = np.cbrt(9 * u + u * discriminant_root)
    first_cube_root = np.cbrt(2 / 3) * u / v
    # 18^(1/3) = 2^(1/3) 3^(2/3)
    second_cube_root = v / np.cbrt(18)
    root: Doubles = 1 + first_cube_root + second_cube_root
    return root


def _cosine_root(u: Doubles) -> Doubles:
    """The largest of three real roots, by the cosine of a third of an angle (13)."""
    angle = np.arccos(1.5 * np.sqrt(3 / u))
    amplitude = 2 * np.sqrt(u / 3)
    root: Doubles = 1 + amplitude * np.cos(angle / 3)
    return root


@cache
def closed_form_thresholds() -> Doubles:
    """Return (14), where the closed form reaches q, for q = 2 ... 2^16 at q - 2."""
    # (14)
    q = _levels_up_to(MOST_LEVELS)
    below = q - 1
    cube = below * below * below
    return cube / q


@cache
def upgrade_thresholds() -> Doubles:
    """Return (15), from where q + 1 beats q, for q = 2 ... 2^16 - 1 at q - 2.

    It is the ``u`` at which the error that one level more removes is worth its bits.
    """
    q = _levels_up_to(MOST_LEVELS - 1)
    # (15)
    log = _log_next_over(q)
    product = (q - 1) * q
    numerator = 2 * log * (product * product)
    denominator = 2 * q - 1
    return numerator / denominator


def _levels_up_to(most: int) -> Doubles:
    return np.arange(FEWEST_LEVELS, most + 1, dtype=np.float64)


def _log_next_over(q: Doubles) -> Doubles:
    """``ln((q+1)/q) = 2 atanh(z)`` with ``z = 1/(2q+1)``, by the series of atanh.

    The logarithms of mathematical libraries differ between machines.
    """
    z = 1 / (2 * q + 1)
    square = z * z
    total = np.zeros_like(q)
    # Horner's scheme for 1 + z^2/3 + z^4/5 + ...
    for k in reversed(range(_LOG_TERMS)):
        coefficient = 1 / (2 * k + 1)
        total = total * square + coefficient
    return 2 * z * total


@cache
def span_squares() -> Doubles:
    """Return ``n^2`` for the spans n = 0 ... 199 that a column can have in grid steps.

    ``u = m n^2`` where the multiplier ``m = step^2 ln2 / (2 nu)`` holds all that
    columns have in common.
    """
    spans = np.arange(ENDPOINT_LEVELS, dtype=np.float64)
    return spans**2


def floor_level(u: ArrayLike) -> Ints:
    """Return the integer part of `optimal_level`, clipped to 2 ... 2^16.

    >>> floor_level([0.001, 0.5, 6.75, 1000, 1e12]).tolist()
    [2, 2, 4, 33, 65536]
    """
    reached = closed_form_thresholds().searchsorted(u, side="right")
    # the first threshold is that of two levels, which every column has
    return np.maximum(reached + 1, FEWEST_LEVELS)


def best_level(u: ArrayLike) -> Ints:
    """Return the integer that minimises error plus price of the bits, in 2 ... 2^16.

    >>> best_level([0.001, 1.0, 1.1, 1000, 1e12]).tolist()
    [2, 2, 3, 33, 65536]
    """
    reached = upgrade_thresholds().searchsorted(u, side="right")
    return np.asarray(reached + FEWEST_LEVELS)
