"""A random part of the batch's samples."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from math import isqrt

import torch
from torch import Tensor

from flwr_splitfc.codec.arrays import Ints
from flwr_splitfc.codec.errors import PayloadError
from flwr_splitfc.codec.format.column_sets import (
    pack_selection,
    selection_bytes,
    unpack_selection,
)
from flwr_splitfc.codec.format.fields import take
from flwr_splitfc.codec.link import Link
from flwr_splitfc.codec.selectors.selection import Selection
from flwr_splitfc.codec.selectors.selector import Selector
from flwr_splitfc.codec.statistics import check_entries

MOST_PRODUCTS, FEWEST_CHANNELS = 2**25, 64
"""What the KLT of the channels may cost: a multiplication for each entry that is sent and each channel."""

# the largest KLT of the transform codec (`klt.LARGEST_KLT`), which selectors do not import
LARGEST_KLT = 512
"""Channels; with more, there is no KLT and its cost does not grow further."""

MOST_BYTES = 5 * 2**12
"""Of a part of the batch, where 5/8 bit for each entry are less."""


def rows_to_send(rows: int, columns: int, channels: int, budget_bytes: int) -> int:
    """How many samples a budget is best spent on, and there is time for (docs/splitfc-rd.md).

    Twice the square root of its bytes, or as many as leave each entry a bit if these
    are more. Time is for an eighth of the batch, or for more while the KLT of the
    channels is small.

    >>> rows_to_send(256, 1152, 32, budget_bytes=1843), rows_to_send(32, 1152, 32, budget_bytes=1843)
    (84, 32)
    >>> rows_to_send(128, 4096, 64, budget_bytes=13107), rows_to_send(256, 8192, 128, budget_bytes=52428)
    (128, 32)
    """
    wanted = max(2 * isqrt(budget_bytes), 8 * budget_bytes // columns)
    channels = min(max(channels, FEWEST_CHANNELS), LARGEST_KLT)
    return max(
        1, min(rows, wanted, max(rows // 8, MOST_PRODUCTS // (columns * channels)))
    )


@dataclass(frozen=True)
class RowSample(Selector):
    """Sends a uniform random sample of the batch's rows, all columns of them.

    Labels, loss and gradient are of these rows alone, so the gradient stays unbiased
    without a scale. Nothing is dropped where all rows are wanted, as in evaluation.
    """

    def select(self, matrix: Tensor, selection: Selection) -> tuple[Tensor, Link]:
        check_entries(matrix)
        rows, width = matrix.shape
        groups = selection.channels.count
        link = Link(rows, width, device=matrix.device, groups=groups)
        sent = rows_to_send(rows, width, groups, selection.budget_bytes)
        if sent == rows or not selection.training or selection.all_rows:
            return matrix, link
        order = torch.randperm(rows, generator=selection.generator)
        link = replace(link, samples=order[:sent].sort().values)
        return link.restrict(matrix), link

    def pack(self, link: Link) -> bytes:
        assert link.groups is not None  # `select` has set it
        return pack_rows(
            None if link.samples is None else link.samples.numpy(),
            link.rows,
            link.groups,
        )

    def unpack(
        self, data: memoryview, rows: int, columns: int
    ) -> tuple[Link, memoryview]:
        samples, groups, rest = unpack_rows(data, rows)
        return Link(
            rows,
            columns,
            samples=None if samples is None else torch.from_numpy(samples),
            groups=groups,
        ), rest

    def useful_bytes(self, link: Link, budget_bytes: int) -> int:
        """Of a part of the batch, 5/8 bit for each entry: more would not make up for the rows that are left out."""
        if link.samples is None:
            return budget_bytes
        return min(budget_bytes, max(MOST_BYTES, 5 * link.sent * link.width // 64))

    def most_columns(self, columns: int, *, training: bool = True) -> int:
        return columns

    def most_bytes(self, rows: int, kept: int, columns: int) -> int:
        return rows_bytes(rows)


def rows_bytes(rows: int) -> int:
    """Bytes that are enough for a sample of so many rows."""
    return 4 + selection_bytes(1, rows, rows)


def pack_rows(samples: Ints | None, rows: int, groups: int) -> bytes:
    """Write which of the rows are sent, None for all, and how many channels each has."""
    return struct.pack("<I", groups) + pack_selection(samples, rows)


def unpack_rows(data: memoryview, rows: int) -> tuple[Ints | None, int, memoryview]:
    """Read what `pack_rows` wrote and return the rest."""
    (groups,), rest = take(data, "I")
    samples, rest = unpack_selection(rest, rows)
    if samples is not None and not len(samples):
        raise PayloadError("no row was sent")
    return samples, groups, rest
