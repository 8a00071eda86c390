"""Top-S: the entries of largest magnitude (Zheng et al., IJCAI 2023, Sec. 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flwr_splitfc.codec.selectors.entry_selector import EntrySelector, largest_entries


@dataclass(frozen=True)
class TopEntries(EntrySelector):
    """Keeps the largest entries of every row, as many as the budgets pay for.

    Top-S; the paper, 2305.18469, calls it top-k.
    """

    def choose(
        self,
        magnitude: Tensor,
        kept: int,
        generator: torch.Generator | None,
        *,
        training: bool,
    ) -> Tensor:
        return largest_entries(magnitude, kept)
