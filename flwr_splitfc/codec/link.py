"""What a selection leaves behind for the way back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Link:
    """The selection of one step: which columns went up and, on the device, how they were scaled.

    The device's link knows the scale, the server's does not: dropout probabilities are never sent
    (SplitFC, Sec. IV).

    Parameters
    ----------
    rows : int
        ``B``, the samples of the batch.
    width : int
        ``D``, the columns before the selection.
    columns : Tensor or None
        Kept columns, int64: (K,), or (B, K) when every row keeps its own entries; None keeps all.
    scale : Tensor or None
        What kept columns were multiplied by, float32 (K,); None for no scaling, and on the server.
    device : torch.device
        Where the features live.
    correction : Tensor or None
        What the device adds to the decoded gradient of the kept columns, float32 (B, K); see
        `Quantiser.gradient_correction`.

    Examples
    --------
    >>> link = Link(rows=1, width=4, columns=torch.tensor([1, 3]), scale=torch.tensor([2.0, 4.0]))
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

    @property
    def kept(self) -> int:
        """``K``, the columns that are sent."""
        return self.width if self.columns is None else self.columns.shape[-1]

    def restrict(self, matrix: Tensor) -> Tensor:
        """Take the kept columns, (B, K), of a (B, D) matrix."""
        if self.columns is None:
            return matrix
        return matrix.gather(1, self.columns.to(matrix.device).expand(self.rows, -1))

    def expand(self, kept: Tensor) -> Tensor:
        """Put (B, K) back into (B, D), scaled where the link has a scale, zeros where dropped."""
        if self.scale is not None:
            kept = kept * self.scale.to(kept.device)
        if self.columns is None:
            return kept
        zeros = kept.new_zeros(self.rows, self.width)
        return zeros.scatter_(1, self.columns.to(kept.device).expand(self.rows, -1), kept)
