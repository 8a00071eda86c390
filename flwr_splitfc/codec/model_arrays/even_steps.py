"""Entries of both signs as multiples of one step.

The value of the integer ``k`` is ``k * step``. A sender chooses ``step = rms * 2^(2 -
bits)`` and ``k = rint(x / step)``. Gaussian entries then take ``bits + 0.05`` bits
each: their entropy is ``log2(rms sqrt(2 pi e) / step)``, and ``log2 sqrt(2 pi e)`` is
2.05. Entries of which many are near zero take fewer.

Entries of an optimizer's state are rounded up or down at random, so that they are right
on average: they have no exact copy, and an average that moves by less than half a step
a turn would never move. Below half a step they become 0 all the same. A whole step may
be a thousand times such an entry, and the optimizer may divide it by a root as small.

One step is for the whole tensor, perhaps after its columns were brought to one scale
(`column_levels`). Blocks with a step each, by their largest entry, are for codes
without a range coder: they even out how many levels entries take, which is what the
range coder makes free. At a given number of bytes, one step has the least squared
error.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flwr_splitfc.codec.arrays import Doubles
from flwr_splitfc.codec.errors import PayloadError
from flwr_splitfc.codec.format.fields import take
from flwr_splitfc.codec.model_arrays.blocks import blocks
from flwr_splitfc.codec.model_arrays.class_code import pack_integers, unpack_integers
from flwr_splitfc.codec.model_arrays.column_levels import ColumnLevels
from flwr_splitfc.codec.model_arrays.magnitude_classes import MOST_MAGNITUDE

Entries = NDArray[np.floating[Any]]
"""Those of an array, flat."""


def pack_even_steps(
    entries: Entries,
    bits: int,
    draw: np.random.Generator | None,
    levels: ColumnLevels | None,
) -> bytes | None:
    """Write finite entries; None where float32 has no step that fits.

    They are rounded by `draw` if there is one, otherwise to the nearest. Entries that
    are all zero take no bytes.
    """
    if not entries.any():
        return b""
    step, greatest = _step(entries, bits, levels)
    if not 0 < step < np.inf or greatest / step > MOST_MAGNITUDE:
        return None
    multiples = np.empty(len(entries), np.int32)
    for block, doubles in _levelled(entries, levels):
        quotients = doubles / step
        if draw is None:
            multiples[block] = np.rint(quotients)
        else:
            multiples[block] = _drawn_multiples(quotients, draw)
    return struct.pack("<f", step) + pack_integers(multiples)


def _drawn_multiples(quotients: Doubles, draw: np.random.Generator) -> Doubles:
    """Round to one of the two integers around, as often as it is near; some to 0."""
    below = np.floor(quotients)
    rises = draw.random(len(quotients)) < quotients - below
    multiples: Doubles = below + rises
    multiples[np.abs(quotients) < 0.5] = 0
    return multiples


def _step(
    entries: Entries, bits: int, levels: ColumnLevels | None
) -> tuple[float, float]:
    """Return the step, which float32 has, and the greatest levelled magnitude.

    The step is 0 or inf where float32 is too narrow.
    """
    sum_of_squares = greatest = 0.0
    with np.errstate(over="ignore"):
        for _, doubles in _levelled(entries, levels):
            sum_of_squares += float(doubles @ doubles)
            greatest = max(greatest, float(np.abs(doubles).max()))
        rms = np.sqrt(sum_of_squares / len(entries))
        return float(np.float32(rms * 2.0 ** (2 - bits))), greatest


def _levelled(
    entries: Entries, levels: ColumnLevels | None
) -> Iterator[tuple[slice, Doubles]]:
    """Yield each block and its entries, after they were levelled."""
    for block in blocks(len(entries)):
        doubles = entries[block].astype(np.float64)
        yield block, doubles if levels is None else np.ldexp(doubles, levels.of(block))


def unpack_even_steps(
    data: memoryview, entries: Entries, levels: ColumnLevels | None = None
) -> None:
    """Read what `pack_even_steps` wrote into entries of the array's type."""
    if len(data) == 0:
        entries.fill(0)
        return
    (step,), rest = take(data, "f")
    if not 0 < step < np.inf:
        raise PayloadError(f"step is {step}; a finite positive number was wanted")
    greatest = float(np.finfo(entries.dtype).max)
    for block, multiples, _ in unpack_integers(
        rest, len(entries), may_have_zeros=False
    ):
        values = multiples * np.float64(step)
        if levels is not None:
            values = np.ldexp(values, -levels.of(block))
        entries[block] = np.clip(values, -greatest, greatest)
