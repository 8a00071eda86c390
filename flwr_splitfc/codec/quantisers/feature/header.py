"""What precedes the symbols of a feature-quantised matrix."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import isfinite
from typing import NamedTuple

import numpy as np

from flwr_splitfc.codec.arrays import Ints
from flwr_splitfc.codec.errors import PayloadError
from flwr_splitfc.codec.format.column_sets import (
    column_set_bytes,
    pack_columns,
    unpack_columns,
)
from flwr_splitfc.codec.format.fields import take
from flwr_splitfc.codec.format.floats import check_interval

ENDPOINT_LEVELS = 200
"""Points of the grid for column endpoints, ``Q_ep`` (SplitFC, Sec. V)."""


class Upgrades(NamedTuple):
    """Which columns get a level more, in `levels.upgrade_order`: the `first`, and `more` after `skipped` others."""

    first: int = 0
    skipped: int = 0
    more: int = 0


NO_UPGRADES = Upgrades()


@dataclass(frozen=True, eq=False)
class QuantHeader:
    """What the reader of a feature-quantised (B, K) matrix knows before the symbols.

    Parameters
    ----------
    two_stage : ndarray
        The ``M`` columns whose entries are sent, int64, increasing.
    low, high : float
        Ends of the endpoint grid.
    multiplier : float
        ``m``: a column that spans n grid steps has levels for ``u = m n^2``.
    upgrades : Upgrades
        Which columns have one level more than that.
    mean_low, mean_high : float
        Ends of the grid for the means of the other columns.
    mean_levels : int
        ``Q_0``, its points.
    """

    two_stage: Ints
    low: float = 0.0
    high: float = 0.0
    multiplier: float = 1.0
    upgrades: Upgrades = NO_UPGRADES
    mean_low: float = 0.0
    mean_high: float = 0.0
    mean_levels: int = 1


_COUNT, _ENTRIES, _MEANS = "I", "fffIBB", "ffH"


def quant_header_bytes(two_stage: int, columns: int) -> int:
    """Bytes before the symbols with `two_stage` out of `columns` columns in two stages."""
    size = struct.calcsize("<" + _COUNT) + column_set_bytes(two_stage, columns)
    if two_stage > 0:
        size += struct.calcsize("<" + _ENTRIES)
    if two_stage < columns:
        size += struct.calcsize("<" + _MEANS)
    return size


def pack_quant_header(header: QuantHeader, columns: int) -> bytes:
    """Write everything of a feature-quantised matrix of K `columns` that precedes the symbols."""
    count = len(header.two_stage)
    parts = [struct.pack("<" + _COUNT, count)]
    if count > 0:
        fields = header.low, header.high, header.multiplier, *header.upgrades
        parts += [
            struct.pack("<" + _ENTRIES, *fields),
            pack_columns(header.two_stage, columns),
        ]
    if count < columns:
        parts.append(
            struct.pack(
                "<" + _MEANS, header.mean_low, header.mean_high, header.mean_levels - 1
            )
        )
    return b"".join(parts)


def unpack_quant_header(
    data: memoryview, columns: int
) -> tuple[QuantHeader, memoryview]:
    """Read what `pack_quant_header` wrote and return the symbols' bytes with it."""
    (count,), rest = take(data, _COUNT)
    if count > columns:
        raise PayloadError(f"{count} two-stage columns of {columns}")
    low = high = mean_low = mean_high = 0.0
    multiplier, upgrades, mean_levels = 1.0, NO_UPGRADES, 1
    two_stage = np.arange(0)
    if count > 0:
        (low, high, multiplier, *more), rest = take(rest, _ENTRIES)
        upgrades = _checked_upgrades(Upgrades(*more))
        check_interval(low, high, "endpoint")
        if not (isfinite(multiplier) and multiplier > 0):
            raise PayloadError(
                f"multiplier is {multiplier}; a finite positive number was wanted"
            )
        two_stage, rest = unpack_columns(rest, count, columns)
    if count < columns:
        (mean_low, mean_high, last), rest = take(rest, _MEANS)
        check_interval(mean_low, mean_high, "mean")
        mean_levels = last + 1
        if (mean_levels == 1) != (mean_low == mean_high):
            raise PayloadError(
                f"{mean_levels} mean levels from {mean_low} to {mean_high}"
            )
    header = QuantHeader(
        two_stage, low, high, multiplier, upgrades, mean_low, mean_high, mean_levels
    )
    return header, rest


def _checked_upgrades(upgrades: Upgrades) -> Upgrades:
    if (upgrades.skipped == 0) != (upgrades.more == 0):
        raise PayloadError(
            f"{upgrades.more} upgrades after {upgrades.skipped} skipped; both or neither must be 0"
        )
    return upgrades
