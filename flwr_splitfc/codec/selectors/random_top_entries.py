"""RandTop-S: mostly the largest entries (Zheng et al., IJCAI 2023, Sec. 4).

Of D entries, the S largest and the others have the weights

    (1 - alpha) / S   and   alpha / (D - S),

and S are drawn one after the other by weight without replacement. Such a drawing is a
race of exponential times, each at the rate of its weight: the first S are drawn. A time
at rate r is ``-log(u) / r`` with u uniform in (0, 1).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flwr_splitfc.codec.selectors.entry_selector import EntrySelector, largest_entries


@dataclass(frozen=True)
class RandomTopEntries(EntrySelector):
    """Keeps entries of every row at random, mostly the largest, as the budgets pay for.

    RandTop-S (2305.18469). What is drawn is sent as it is, unscaled. Without training
    the S largest are kept.

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
        largest = largest_entries(magnitude, kept)
        if not training:
            return largest
        rows, width = magnitude.shape
        uniform = torch.rand(
            rows, width, generator=generator, dtype=torch.float64, device="cpu"
        )
        # In the unit of time in which the others' rate is 1. The times of the largest
        # are shorter by the ratio of the rates.
        minus_times = uniform.log_()
        share_of_largest = (1 - self.alpha) * (width - kept)
        relative_rate = self.alpha * kept / share_of_largest
        columns = largest.cpu()
        of_largest = relative_rate * minus_times.gather(1, columns)
        minus_times.scatter_(1, columns, of_largest)
        first = minus_times.topk(kept, 1, sorted=False)
        return first.indices.to(magnitude.device)
