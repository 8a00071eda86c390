"""Entries that are not negative, at equal ratios; zeros stay zeros and no others do.

The value of the integer ``k`` is ``2^(k beta)``, with ``beta = 2^(4 - bits)`` octaves,
so an entry is off by a factor of less than ``2^beta``. The entries of an optimizer's
second moment span decades and it divides by their root: what matters of them is their
ratio, and a small one that became zero would make a huge step.

A sender draws one of the two values around an entry, so that it is right on average.
The entries have no exact copy, and they move slowly: Adam's fall by 1 in 1,000 a step.
To the nearest value, what moves by less than half a ratio a turn would never move.

No logarithm is computed, as mathematical libraries differ in its last bits. For ``beta
= 2^-j``, the powers of 2 between 1 and 2 are products of ``sqrt(2)``, its root and so
on, which IEEE arithmetic has alike on all machines::

    2^(f / 2^j) = product of 2^(2^-i) over the bits i = 1 ... j of f, the highest first

A sender takes the octave from the float's exponent and finds the fraction among these
powers.

Integers are sent less their median.
"""

from __future__ import annotations

import struct
from functools import lru_cache

import numpy as np

from flwr_splitfc.codec.arrays import Doubles, Ints, Symbols
from flwr_splitfc.codec.errors import PayloadError
from flwr_splitfc.codec.format.fields import take
from flwr_splitfc.codec.model_arrays.blocks import blocks
from flwr_splitfc.codec.model_arrays.class_code import pack_integers, unpack_integers
from flwr_splitfc.codec.model_arrays.even_steps import Entries

_LEAST_BITS = 2
_MOST_BITS = 16

_BITS_OF_AN_OCTAVE = 4
"""With so many bits, a step is one octave."""

_MOST_OCTAVES = 1100
"""Refused above, and below the negative of it; float64 has 2^-1074 to 2^1024."""

_BITS_FIELD = 4
"""Low bits of the header that have `bits - 2`; the others are the median."""


def pack_octave_steps(entries: Entries, bits: int, draw: np.random.Generator) -> bytes:
    """Write finite entries of which none is negative and one at least is above 0.

    They are rounded by `draw`.
    """
    zeros = entries == 0
    steps = np.empty(len(entries), np.int32)
    for block in blocks(len(entries)):
        doubles = entries[block].astype(np.float64)
        steps[block] = _drawn_steps(doubles, bits, draw)
    centre = _median(steps[~zeros])
    steps -= centre
    steps[zeros] = 0
    parameters = centre << _BITS_FIELD | bits - _LEAST_BITS
    return struct.pack("<i", parameters) + pack_integers(steps, zeros)


def _median(steps: Symbols) -> int:
    half = len(steps) // 2
    return int(np.partition(steps, half)[half])


def _drawn_steps(doubles: Doubles, bits: int, draw: np.random.Generator) -> Ints:
    """Return k of each positive entry: one of the two around it, right on average."""
    octave_bits = max(_BITS_OF_AN_OCTAVE - bits, 0)
    fraction_bits = max(bits - _BITS_OF_AN_OCTAVE, 0)
    octaves_a_span = 1 << octave_bits
    powers = _powers(fraction_bits)
    # the values from one power of 2 to another, which begins the next span
    values = np.append(powers, 2.0**octaves_a_span)
    mantissas, exponents = np.frexp(doubles)
    # of 2^octave times a number from 1 to 2
    octaves = exponents.astype(np.int64) - 1
    spans, octaves_within = np.divmod(octaves, octaves_a_span)
    within = np.ldexp(2 * mantissas, octaves_within)
    below = np.searchsorted(values, within, side="right") - 1
    distance = within - values[below]
    to_next = np.diff(values)[below]
    # the nearer the next value is, the more often it is taken
    uniform = draw.random(len(doubles))
    rises = uniform * to_next < distance
    steps: Ints = spans * len(powers) + below + rises
    return steps


@lru_cache
def _powers(fraction_bits: int) -> Doubles:
    """Return ``2^(f / 2^j)`` for f = 0 ... ``2^j - 1``.

    >>> _powers(2).tolist()
    [1.0, 1.189207115002721, 1.4142135623730951, 1.6817928305074292]
    """
    powers = np.ones(1)
    root = 2.0
    for _ in range(fraction_bits):
        root = float(np.sqrt(root))
        # each f so far is followed by the one with one more bit, the lowest
        powers = np.stack([powers, powers * root], axis=1).ravel()
    return powers


def unpack_octave_steps(data: memoryview, entries: Entries) -> None:
    """Read what `pack_octave_steps` wrote into entries of the array's type."""
    (parameters,), rest = take(data, "i")
    bits = _LEAST_BITS + parameters % 2**_BITS_FIELD
    if bits > _MOST_BITS:
        raise PayloadError(
            f"bits are {bits}; {_LEAST_BITS} to {_MOST_BITS} were wanted"
        )
    centre = parameters >> _BITS_FIELD
    limits = np.finfo(entries.dtype)
    least = float(limits.smallest_subnormal)
    greatest = float(limits.max)
    for block, integers, zeros in unpack_integers(
        rest, len(entries), may_have_zeros=True
    ):
        values = _values(centre + integers, bits)
        inside = np.clip(values, least, greatest)
        entries[block] = inside
        if zeros is not None:
            entries[block][zeros] = 0


def _values(steps: Ints, bits: int) -> Doubles:
    """Return ``2^(k beta)``, infinity and zero where float64 has no such number."""
    fraction_bits = bits - _BITS_OF_AN_OCTAVE
    if fraction_bits < 0:
        octaves = steps << -fraction_bits
        powers = np.ones(len(steps))
    else:
        octaves = steps >> fraction_bits
        fractions_of_octave = 1 << fraction_bits
        fractions = steps & fractions_of_octave - 1
        powers = _powers(fraction_bits)[fractions]
    lowest = int(octaves.min())
    highest = int(octaves.max())
    largest = max(-lowest, highest)
    if largest > _MOST_OCTAVES:
        raise PayloadError(
            f"an entry is beyond 2^{largest}; 2^{_MOST_OCTAVES} at most was wanted"
        )
    with np.errstate(over="ignore", under="ignore"):
        return np.ldexp(powers, octaves.astype(np.int32))
