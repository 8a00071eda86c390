"""The bytes that precede the symbols of a feature-quantised matrix.

docs/wire-format.md, section 4, has them in a table.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from functools import lru_cache
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
from flwr_splitfc.codec.format.grid import grid_step

ENDPOINT_LEVELS = 200
"""Points of the grid for column endpoints, ``Q_ep`` (SplitFC, Sec. V)."""


class Upgrades(NamedTuple):
    """Which columns get a level more, in the order of `upgrades.upgrade_order`.

    The `first` of them do, and `more` of those that follow after `skipped` others.
    """

    first: int = 0
    skipped: int = 0
    more: int = 0


NO_UPGRADES = Upgrades()


@dataclass(frozen=True, eq=False)
class QuantHeader:
    """The settings that the reader of a (B, K) matrix gets before the symbols.

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

    @property
    def endpoint_step(self) -> float:
        """From a point of the endpoint grid to the next."""
        return grid_step(self.low, self.high, ENDPOINT_LEVELS)

    @property
    def mean_step(self) -> float:
        """From a point of the grid for means to the next; 0 where all are equal."""
        return grid_step(self.mean_low, self.mean_high, self.mean_levels)


_COUNT = "I"
"""``M``."""

_ENTRIES = "fffIBB"
"""Endpoint grid, multiplier and upgrades; only if there are two-stage columns."""

_MEANS = "ffH"
"""Grid for means and ``Q_0 - 1``; only if there are mean-value columns."""


# a plan asks for a dozen sizes, and those of the next batch are mostly the same
@lru_cache(2**14)
def quant_header_bytes(two_stage: int, columns: int) -> int:
    """Return the header's size with `two_stage` of K `columns` in two stages."""
    size = struct.calcsize("<" + _COUNT)
    size += column_set_bytes(two_stage, columns)
    if two_stage > 0:
        size += struct.calcsize("<" + _ENTRIES)
    if two_stage < columns:
        size += struct.calcsize("<" + _MEANS)
    return size


def pack_quant_header(header: QuantHeader, columns: int) -> bytes:
    """Write the header of a matrix of K `columns`."""
    count = len(header.two_stage)
    data = struct.pack("<" + _COUNT, count)
    if count > 0:
        data += _pack_entries(header)
        data += pack_columns(header.two_stage, columns)
    if count < columns:
        data += _pack_means(header)
    return data


def _pack_entries(header: QuantHeader) -> bytes:
    return struct.pack(
        "<" + _ENTRIES, header.low, header.high, header.multiplier, *header.upgrades
    )


def _pack_means(header: QuantHeader) -> bytes:
    last_point = header.mean_levels - 1
    return struct.pack("<" + _MEANS, header.mean_low, header.mean_high, last_point)


def unpack_quant_header(
    data: memoryview, columns: int
) -> tuple[QuantHeader, memoryview]:
    """Read what `pack_quant_header` wrote and return the symbols' bytes with it."""
    (count,), rest = take(data, _COUNT)
    if count > columns:
        raise PayloadError(f"{count} two-stage columns of {columns}")
    # a part that is not there keeps its defaults
    header = QuantHeader(two_stage=np.arange(0))
    if count > 0:
        header, rest = _with_entries(header, rest)
        two_stage, rest = unpack_columns(rest, count, columns)
        header = replace(header, two_stage=two_stage)
    if count < columns:
        header, rest = _with_means(header, rest)
    return header, rest


def _with_entries(
    header: QuantHeader, data: memoryview
) -> tuple[QuantHeader, memoryview]:
    """Add what `_pack_entries` wrote."""
    fields, rest = take(data, _ENTRIES)
    low, high, multiplier, *more = fields
    upgrades = Upgrades(*more)
    _check_upgrades(upgrades)
    check_interval(low, high, "endpoint")
    _check_multiplier(multiplier)
    header = replace(
        header, low=low, high=high, multiplier=multiplier, upgrades=upgrades
    )
    return header, rest


def _with_means(
    header: QuantHeader, data: memoryview
) -> tuple[QuantHeader, memoryview]:
    """Add what `_pack_means` wrote."""
    fields, rest = take(data, _MEANS)
    low, high, last_point = fields
    check_interval(low, high, "mean")
    # 2^16 levels have to fit into 16 bits
    levels = last_point + 1
    if (levels == 1) != (low == high):
        raise PayloadError(f"{levels} mean levels from {low} to {high}")
    header = replace(header, mean_low=low, mean_high=high, mean_levels=levels)
    return header, rest


def _check_multiplier(multiplier: float) -> None:
    if isfinite(multiplier) and multiplier > 0:
        return
    raise PayloadError(
        f"multiplier is {multiplier}; a finite positive number was wanted"
    )


def _check_upgrades(upgrades: Upgrades) -> None:
    """One selection has one form: nothing is skipped for nothing."""
    if (upgrades.skipped == 0) == (upgrades.more == 0):
        return
    raise PayloadError(
        f"{upgrades.more} upgrades after {upgrades.skipped} skipped;"
        " both or neither must be 0"
    )
