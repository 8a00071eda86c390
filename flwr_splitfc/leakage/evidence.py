"""What an attack learns from, and what it answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flwr_splitfc.leakage.attack_settings import AttackSettings
from flwr_splitfc.leakage.releases import Releases
from flwr_splitfc.leakage.units import has_columns

_HELD_OUT = 0.2
_MOST_HELD_OUT = 250  # they only tell attacks apart
_LEAST_KEPT = 0.3
# of a column, over that of all: one that hardly varies here may vary elsewhere
_LEAST_SPREAD = 0.1
_ANY_SPREAD = 1e-12
_ROOM = 8  # beyond a column's range, over what it is short by


class Guesses(NamedTuple):
    """Inputs as an attack guesses them, (N, ...) and (M, ...).

    Those of the samples that are held out come from the others alone.
    """

    held_out: Tensor
    attacked: Tensor


class LeftOut(Exception):
    """An attack that cannot be tried; the message says why."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """What the attacker has: samples that it knows, features of others, and the half.

    The last of the known samples are held out: on them attacks are compared, before one
    is chosen.

    Parameters
    ----------
    known, attacked : Releases
    half : nn.Module, optional
        The device half, from inputs to features without noise.
    as_sent : bool (default: True)
        Whether the half gives the features again as they were sent, by the releases'
        draws. Otherwise attacks that run it have dropout off.
    """

    known: Releases
    attacked: Releases
    half: nn.Module | None = None
    as_sent: bool = True

    @cached_property
    def kept(self) -> Releases:
        """The known samples that attacks learn from."""
        return self.known.select(self.kept_rows)

    @cached_property
    def kept_rows(self) -> Tensor:
        """The places of these among the known samples.

        A sample may be known twice, as where batches are drawn with replacement. An
        attack that finds it again would look better than it is: so what is held out is
        not learned from. In a table of few different rows that is most, and all stay.
        """
        first, last = self.known.inputs.tensor_split([self._kept_count])
        held_out = {_content(row) for row in last}
        is_new = [_content(row) not in held_out for row in first]
        is_other = torch.tensor(is_new)
        rows = torch.arange(self._kept_count)
        others = rows[is_other]
        if len(others) < _LEAST_KEPT * len(rows):
            return rows
        return others

    @cached_property
    def held_out(self) -> Releases:
        """The other known samples."""
        return self.known.rows(self._kept_count, len(self.known.inputs))

    @cached_property
    def _kept_count(self) -> int:
        """How many samples to learn from: all but a fifth, or 250.

        What is held out is of other batches, as what is attacked is: samples of one
        batch have the codec's choices in common, such as the columns that are left out.
        """
        known = self.known
        count = len(known.inputs)
        held_out = ceil(_HELD_OUT * count)
        kept = count - min(held_out, _MOST_HELD_OUT)
        if known.batch is None:
            return kept
        batch = known.batch[kept]
        first_of_batch = torch.searchsorted(known.batch, batch)
        # a single batch has to be divided
        return int(first_of_batch) or kept

    @cached_property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """Within what inputs are guessed: low and high.

        That is the range of the known ones. Of columns each has its own, and more where
        few samples tell it: the range of n is short by about an n-th at either end.
        """
        inputs = self.known.inputs
        if not has_columns(inputs.shape[1:]):
            return inputs.min(), inputs.max()
        low = inputs.amin(0)
        high = inputs.amax(0)
        room = _ROOM * (high - low) / len(inputs)
        return low - room, high + room

    @cached_property
    def standard(self) -> "Standard":
        """By the kept samples: what is held out is as new as what is attacked."""
        return Standard.of(self.kept.features)

    @cached_property
    def scale(self) -> Tensor:
        """What entries that were sent were multiplied by, (D,).

        The payload does not tell, so it is the regression, without a constant, of what
        arrived of each column of the kept samples on the half's features. Where noise
        makes a column's uncertain, it is drawn to that of all: by the variance of all
        columns' over itself and the column's own.
        """
        kept = self.kept
        if kept.own is None or kept.sent is None:
            return torch.ones(kept.features[0].numel())
        arrived = kept.features.flatten(1)  # (N, D)
        own = kept.own.flatten(1) * kept.sent
        products = (own * arrived).sum(0)  # (D,)
        squares = own.square().sum(0)
        of_all = products.sum() / squares.sum()
        seen = (squares > 0) & (products > 0)
        squares = squares.clamp(min=_ANY_SPREAD)
        slopes = torch.where(seen, products / squares, of_all)
        # the variance of each slope
        left = arrived - own * slopes  # (N, D)
        left_squares = left.square().sum(0)
        counts = kept.sent.sum(0).clamp(min=2)
        noise = left_squares / (counts - 1)
        uncertain = noise / squares
        # the variance of columns' slopes, beyond what noise makes of it
        differences = slopes - of_all
        variance = differences[seen].square().mean()
        by_noise = uncertain[seen].mean()
        spread = (variance - by_noise).clamp(min=0)
        whole = spread + uncertain + _ANY_SPREAD
        certain = spread / whole
        return of_all + certain * differences

    def unscaled(self, releases: Releases) -> Tensor:
        """Return what arrived (N, D) as the half gave it; zeros where nothing came."""
        return releases.features.flatten(1) / self.scale

    def sent(self, releases: Releases) -> Tensor:
        """Return 1 for each entry (N, D) that was sent, and 0 for others."""
        if releases.sent is None:
            return torch.ones_like(releases.features.flatten(1))
        return releases.sent.float()


def _content(row: Tensor) -> bytes:
    return row.numpy().tobytes()


def errors_of(tried: Sequence[Tensor], wanted: Tensor) -> list[float]:
    """Return the mean squared error of each of some guesses of inputs (M, ...)."""
    errors = []
    for guesses in tried:
        error = F.mse_loss(guesses, wanted)
        errors.append(error.item())
    return errors


Attack: TypeAlias = Callable[[Evidence, AttackSettings], Guesses | None]
"""Guesses inputs; gives None where it has no place, and raises `LeftOut`."""


@dataclass(frozen=True, eq=False)
class Standard:
    """Brings features to mean 0 and spread 1: over samples, and places if there are."""

    mean: Tensor
    spread: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Standard":
        """Return that of features (N, ...)."""
        over = [dim for dim in range(features.ndim) if dim != 1]
        mean = features.mean(over, keepdim=True)
        spread = features.std(over, keepdim=True)
        of_all = spread.mean().item()
        least = max(_LEAST_SPREAD * of_all, _ANY_SPREAD)
        return cls(mean, spread.clamp(min=least))

    def __call__(self, features: Tensor) -> Tensor:
        """Return features (N, ...) less the mean and over the spread."""
        return (features - self.mean) / self.spread
