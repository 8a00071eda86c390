"""The link between a step's two directions: which entries went up, and how scaled."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from flwr_splitfc.codec.arrays import Ints
from flwr_splitfc.codec.channels import Layout
from flwr_splitfc.codec.levels import gains_of


@dataclass(frozen=True, eq=False)
class Link:
    """The selection of one step: sent rows, kept columns and, on the device, a scale.

    The device's link knows the scale, the server's does not: dropout probabilities are
    never sent (SplitFC, Sec. IV).

    Parameters
    ----------
    rows : int
        ``B``, the samples of the batch.
    width : int
        ``D``, the columns before the selection.
    columns : Tensor or None
        Kept columns, int64: (K,), or (B, K) when every row keeps its own entries; None
        keeps all.
    scale : Tensor or None
        What kept columns were multiplied by, float32 (K,); None for no scaling, and on
        the server.
    device : torch.device
        Where the features live.
    correction : Tensor or None
        What the device adds to the decoded gradient of the kept columns, float32 (B,
        K); see `Quantiser.gradient_correction`.
    samples : Tensor or None
        Sent rows, int64 (b,), increasing and at least one; None for all. The loss is of
        these alone, with their labels: `sent_rows`.
    groups : int or None
        Channels of flat (B, D) features, where both sides know it.
    layout : Layout or None
        Channels and maps in the columns, as both sides know them; for quantisers that
        ask for it.
    exponents : ndarray or None
        Of the powers of two by which channels are levelled (see `codec.levels`), int64
        (C,); None where they are not. Both sides know them. The gradient then has its
        own.
    turned : bool
        Whether the channels that are levelled are not where the shape tells, see
        `other_channel_dim`.

    Examples
    --------
    >>> columns, scale = torch.tensor([1, 3]), torch.tensor([2.0, 4.0])
    >>> link = Link(rows=1, width=4, columns=columns, scale=scale)
    >>> link.restrict(torch.tensor([[5.0, 6.0, 7.0, 8.0]]))
    tensor([[6., 8.]])
    >>> link.expand(torch.tensor([[6.0, 8.0]]))
    tensor([[ 0., 12.,  0., 32.]])
    """

    rows: int
    width: int
    columns: Tensor | None = None
    scale: Tensor | None = None
    device: torch.device = torch.device("cpu")
    correction: Tensor | None = None
    samples: Tensor | None = None
    groups: int | None = None
    layout: Layout | None = None
    exponents: Ints | None = None
    turned: bool = False

    @property
    def sent(self) -> int:
        """``b``, the rows that are sent."""
        if self.samples is None:
            return self.rows
        return len(self.samples)

    @property
    def kept(self) -> int:
        """``K``, the columns that are sent."""
        if self.columns is None:
            return self.width
        return self.columns.shape[-1]

    @cached_property
    def gains(self) -> Tensor | None:
        """What features are multiplied by to be levelled, float32 (D,) on the CPU.

        None if they are not.
        """
        if self.exponents is None or self.layout is None:
            return None
        return gains_of(self.exponents, self.layout)

    def sent_rows(self, batch: Tensor) -> Tensor:
        """Take the sent rows of B features, labels or anything with a row a sample.

        >>> link = Link(rows=3, width=4, samples=torch.tensor([0, 2]))
        >>> link.sent_rows(torch.tensor([5, 6, 7]))
        tensor([5, 7])
        """
        if self.samples is None:
            return batch
        samples = self.samples.to(batch.device)
        return batch.index_select(0, samples)

    def all_rows(self, sent: Tensor) -> Tensor:
        """Put the sent rows in their places among all B, the others zero."""
        if self.samples is None:
            return sent
        row_shape = sent.shape[1:]
        zeros = sent.new_zeros(self.rows, *row_shape)
        samples = self.samples.to(sent.device)
        return zeros.index_copy_(0, samples, sent)

    def restrict(self, matrix: Tensor) -> Tensor:
        """Take the sent rows and kept columns, (b, K), of a (B, D) matrix."""
        rows = self.sent_rows(matrix)
        if self.columns is None:
            return rows
        columns = self._columns_of_rows(self.columns, rows.device)
        return rows.gather(1, columns)

    def expand(self, kept: Tensor) -> Tensor:
        """Put (b, K) back into (B, D), scaled where the link has a scale.

        What was not sent is zero.
        """
        if self.scale is not None:
            scale = self.scale.to(kept.device)
            kept = kept * scale
        if self.columns is None:
            return self.all_rows(kept)
        columns = self._columns_of_rows(self.columns, kept.device)
        zeros = kept.new_zeros(self.sent, self.width)
        sent = zeros.scatter_(1, columns, kept)
        return self.all_rows(sent)

    def _columns_of_rows(self, columns: Tensor, device: torch.device) -> Tensor:
        """Return the kept columns of each sent row, (b, K)."""
        there = columns.to(device)
        return there.expand(self.sent, -1)
