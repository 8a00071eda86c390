"""Randomised Top-S (Zheng et al., IJCAI 2023, Sec. 4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flwr_splitfc.codec.selectors.entry_selector import EntrySelector, largest_entries


@dataclass(frozen=True)
class RandomTopEntries(EntrySelector):
    """Every row keeps ``S`` entries at random, mostly those of largest magnitude (RandTop-S, 2305.18469).

    They are drawn one after the other without replacement, with weight ``(1 - alpha) /
    S`` for each of the S largest and ``alpha / (D - S)`` for each of the others. What
    is drawn is sent as it is, unscaled. Without training the S largest are kept.

    Parameters
    ----------
    alpha : float
        Share of the others in the first draw, at least 0 and below 1; 0 is Top-S. The
        default is that of the paper's experiments and of later comparisons with it.
    """

    alpha: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < 1:
            raise ValueError(f"alpha must be at least 0 and below 1, got {self.alpha}")

    def choose(
        self,
        magnitude: Tensor,
        kept: int,
        generator: torch.Generator | None,
        *,
        training: bool,
    ) -> Tensor:
        """Drawing by weight is a race: the first S of exponential times, each at the rate of its weight."""
        largest = largest_entries(magnitude, kept)
        if not training:
            return largest
        rows, width = magnitude.shape
        # that of the largest is 1
        rate_of_others = self.alpha * kept / ((1 - self.alpha) * (width - kept))
        minus_times = torch.rand(
            rows, width, generator=generator, dtype=torch.float64
        ).log_()
        columns = largest.cpu()
        minus_times.scatter_(
            1, columns, rate_of_others * minus_times.gather(1, columns)
        )
        return minus_times.topk(kept, 1, sorted=False).indices.to(magnitude.device)
