"""A random part of the batch's samples (docs/splitfc-rd.md).

A selection of rows is ``u32`` channels, ``u32`` b and a column set of b out of B rows.
Where channels are levelled, the highest bit of the channels is set, and their exponents
follow. The next bit is set where the channels are not where the shape tells.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from math import isqrt
from typing import ClassVar

import torch
from torch import Tensor

from flwr_splitfc.codec.arrays import Ints, from_ints, to_ints
from flwr_splitfc.codec.channels import LARGEST_KLT
from flwr_splitfc.codec.errors import PayloadError
from flwr_splitfc.codec.format.column_sets import (
    pack_selection,
    selection_bytes,
    unpack_selection,
)
from flwr_splitfc.codec.format.exponents import pack_exponents, take_exponents
from flwr_splitfc.codec.format.fields import take
from flwr_splitfc.codec.link import Link
from flwr_splitfc.codec.selectors.selection import Selection
from flwr_splitfc.codec.selectors.selector import Selector
from flwr_splitfc.codec.statistics import check_entries

# The KLT of the channels costs a multiplication for each entry that is sent and each
# channel; this is what it may cost, for at least so many channels.
_MOST_PRODUCTS = 2**25
_FEWEST_CHANNELS = 64

_PRECISE_BITS = 0.5
"""Bits an entry from which a budget is for precision, and time does not bound it."""

_LEVELLED = 2**31
"""In the field of the channels: that their exponents follow."""

_TURNED = 2**30
"""In the field of the channels: that they are in the other dimension."""

_MARKS = _LEVELLED | _TURNED

_ALWAYS_USEFUL_BYTES = 5 * 2**12
"""What a part of the batch may take even where that is more than 5/8 bit an entry."""


def rows_worthwhile(rows: int, columns: int, budget_bytes: int) -> int:
    """Return how many samples a budget is best spent on.

    Twice the square root of its bytes, or as many as leave each entry a bit if these
    are more.

    >>> rows_worthwhile(256, 1152, budget_bytes=1843)
    84
    """
    rows_at_a_bit = 8 * budget_bytes // columns
    wanted = max(2 * isqrt(budget_bytes), rows_at_a_bit)
    return max(1, min(rows, wanted))


def rows_in_time(rows: int, columns: int, channels: int) -> int:
    """Return how many samples there is time for.

    An eighth of the batch, or more while the KLT of the channels is small. Two at
    least, for a BatchNorm behind the cut.

    >>> rows_in_time(256, 8192, channels=128)
    32
    """
    # with more channels there is no KLT, and its cost does not grow further
    klt_channels = min(max(channels, _FEWEST_CHANNELS), LARGEST_KLT)
    products_of_a_row = columns * klt_channels
    quick = _MOST_PRODUCTS // products_of_a_row
    return max(2, rows // 8, quick)


@dataclass(frozen=True)
class RowSample(Selector):
    """Sends a uniform random sample of the batch's rows, all columns of them.

    Labels, loss and gradient are of these rows alone, so the gradient stays unbiased
    without a scale. Nothing is dropped where all rows are wanted, as in evaluation.
    """

    version: ClassVar[int] = 4
    levels: ClassVar[bool] = True

    def select(self, matrix: Tensor, selection: Selection) -> tuple[Tensor, Link]:
        check_entries(matrix)
        rows, width = matrix.shape
        groups = selection.channels.count
        link = Link(rows, width, device=matrix.device, groups=groups)
        sent = rows_worthwhile(rows, width, selection.budget_bytes)
        bits_per_entry = 8 * selection.budget_bytes / matrix.numel()
        if selection.in_haste and bits_per_entry < _PRECISE_BITS:
            quick = rows_in_time(rows, width, groups)
            sent = min(sent, quick)
        wants_all = selection.all_rows or not selection.training
        if wants_all or sent == rows:
            return matrix, link
        order = torch.randperm(rows, generator=selection.generator, device="cpu")
        samples = order[:sent].sort().values
        link = replace(link, samples=samples)
        return link.restrict(matrix), link

    def pack(self, link: Link) -> bytes:
        assert link.groups is not None  # `select` has set it
        samples = to_ints(link.samples)
        channels = link.groups
        if link.exponents is not None:
            channels |= _LEVELLED
            if link.turned:
                channels |= _TURNED
        return pack_rows(samples, link.rows, channels, link.exponents)

    def unpack(
        self, data: memoryview, rows: int, columns: int
    ) -> tuple[Link, memoryview]:
        (field,), rest = take(data, "I")
        groups = field & ~_MARKS
        if groups > columns:
            raise PayloadError(f"{columns} columns are no {groups} channels")
        samples, rest = unpack_selection(rest, rows)
        # A loss of no row is not defined.
        if samples is not None and not len(samples):
            raise PayloadError("no row was sent")
        link = Link(rows, columns, samples=from_ints(samples), groups=groups)
        if field == groups:
            return link, rest
        if not field & _LEVELLED:
            raise PayloadError("channels are turned, and not levelled")
        exponents, rest = take_exponents(rest, groups)
        turned = bool(field & _TURNED)
        return replace(link, exponents=exponents, turned=turned), rest

    def useful_bytes(self, link: Link, budget_bytes: int) -> int:
        """Return 5/8 bit for each entry of a part of the batch, or the budget if less.

        More would not make up for the rows that are left out.
        """
        if link.samples is None:
            return budget_bytes
        entries = link.sent * link.width
        useful = max(_ALWAYS_USEFUL_BYTES, 5 * entries // 64)
        return min(budget_bytes, useful)

    def most_columns(self, columns: int, *, training: bool = True) -> int:
        return columns

    def most_bytes(self, rows: int, kept: int, columns: int) -> int:
        channels_bytes = 4
        return channels_bytes + selection_bytes(1, rows, rows)


def pack_rows(
    samples: Ints | None, rows: int, channels: int, exponents: Ints | None = None
) -> bytes:
    """Write which rows are sent.

    Parameters
    ----------
    samples : ndarray or None
        None for all.
    rows : int
        ``B``.
    channels : int
        ``C``, and what its highest two bits say.
    exponents : ndarray of shape (C,), optional
        Of the powers of two by which channels are levelled, 0 to 15.
    """
    packed = struct.pack("<I", channels) + pack_selection(samples, rows)
    if exponents is None:
        return packed
    return packed + pack_exponents(exponents)
