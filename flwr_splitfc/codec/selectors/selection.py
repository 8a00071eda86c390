"""The terms on which a selector selects."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from flwr_splitfc.codec.channels import Channels


@dataclass(frozen=True, eq=False)
class Selection:
    """The terms of one selection.

    Parameters
    ----------
    channels : Channels
        Which columns belong to one channel.
    affordable : int
        The largest ``K`` that the budgets pay for, by the selector's `most_bytes` and
        the quantiser's `smallest_bytes`; ``D`` for a selector that is not `budgeted`.
    budget_bytes : int
        The budget of the features.
    training : bool
        False asks for a selection without anything random.
    all_rows : bool
        True forbids to leave rows out.
    in_haste : bool
        False forbids to leave rows out for the sake of time; what the budget pays for
        still counts.
    generator : torch.Generator, optional
        A CPU generator, the source of all randomness; default torch's own.
    """

    channels: Channels
    affordable: int
    budget_bytes: int
    training: bool = True
    all_rows: bool = False
    in_haste: bool = True
    generator: torch.Generator | None = None
