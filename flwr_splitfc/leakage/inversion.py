"""Reconstruction by inversion of the device half, which the server has.

From the best guess so far, Adam moves the inputs until the half's features of them are
those that came: the white-box attack of He, Zhang and Lee, ACSAC 2019. How many of its
steps are taken is what is best on the samples held out, since features that were coded
coarsely are not worth more than a few.

What the half draws, as dropout does, is drawn in each step as when the batch was sent:
a server that has given out the seed knows it. Noise of a defence has a key of its own,
which stays on the device.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flwr_splitfc.leakage.attack_settings import AttackSettings
from flwr_splitfc.leakage.evidence import Evidence, Guesses, LeftOut, errors_of
from flwr_splitfc.leakage.releases import Releases
from flwr_splitfc.leakage.replay import (
    MOST_FLOPS,
    at_once,
    features_as_sent,
    flops_of_row,
    replayed,
)

_LEARNING_RATE = 0.1  # over the inputs' spread
_STOPS = (1 / 30, 1 / 10, 1 / 3, 1)  # of all steps
_LEAST_STEPS = 30
_PASSES = 3  # forward, and twice as much backward
_ANY_SQUARE = 1e-30
# of the squared error, a decibel: where coarse features give less, the guesses have
# taken on their noise, and look worse
_LEAST_GAIN = 0.8


def by_inversion(
    evidence: Evidence, settings: AttackSettings, start: Guesses
) -> Guesses | None:
    """Guess inputs (M, ...) from a start; None if no step makes it much better.

    Raises
    ------
    LeftOut
        If the half cannot be differentiated, or is too large for enough steps.
    """
    half = evidence.half
    if half is None or not settings.inversion_steps:
        return None
    if evidence.known.part:
        raise LeftOut("inputs are several tensors")
    inversion = _Inversion(evidence, half)
    with replayed(half, as_sent=evidence.as_sent):
        steps = inversion.affordable_steps(settings.inversion_steps)
        stops = _stops(steps)
        held_out = inversion.moved(evidence.held_out, start.held_out, stops, steps)
        tried = [start.held_out, *held_out]
        errors = errors_of(tried, evidence.held_out.inputs)
        least = min(errors)
        best = errors.index(least)
        if best == 0 or least > _LEAST_GAIN * errors[0]:
            return None
        # the start stands before the guesses at the stops
        stop = stops[best - 1]
        [attacked] = inversion.moved(evidence.attacked, start.attacked, [stop], steps)
    return Guesses(tried[best], attacked)


def _stops(steps: int) -> list[int]:
    """Return after how many of all steps guesses are compared, in order."""
    stops = set()
    for share in _STOPS:
        stop = round(share * steps)
        stops.add(max(1, stop))
    return sorted(stops)


class _Inversion:
    """Moves inputs towards features, within what the known inputs let expect."""

    def __init__(self, evidence: Evidence, half: nn.Module) -> None:
        self._evidence = evidence
        self._half = half
        self._unit = evidence.known.inputs.std().clamp(min=_ANY_SQUARE)
        low, high = evidence.bounds
        self._low = low / self._unit
        self._high = high / self._unit

    def affordable_steps(self, most: int) -> int:
        """Return how many steps to take, by what one costs."""
        evidence = self._evidence
        samples = len(evidence.held_out.inputs) + len(evidence.attacked.inputs)
        flops_of_sample = flops_of_row(self._half, evidence.known)
        flops_of_step = _PASSES * samples * flops_of_sample
        affordable = int(MOST_FLOPS / max(1, flops_of_step))
        steps = min(most, affordable)
        if steps < min(_LEAST_STEPS, most):
            raise LeftOut(
                f"the device half is too large for {samples} samples: attack fewer"
            )
        return steps

    def moved(
        self, releases: Releases, start: Tensor, stops: Sequence[int], steps: int
    ) -> list[Tensor]:
        """Return the inputs (N, ...) after some numbers of all steps."""
        parts = at_once(self._half, releases)
        sizes = [len(part.inputs) for part in parts]
        moved = []
        for part, inputs in zip(parts, start.split(sizes), strict=True):
            by_stop = self._moved(part, inputs, stops, steps)
            moved.append(by_stop)
        return [torch.cat(of_parts) for of_parts in zip(*moved, strict=True)]

    def _moved(
        self, part: Releases, start: Tensor, stops: Sequence[int], steps: int
    ) -> list[Tensor]:
        """Return those of one part."""
        features = self._evidence.unscaled(part)
        sent = self._evidence.sent(part)
        inputs = (start / self._unit).requires_grad_()
        optimizer = torch.optim.Adam([inputs], lr=_LEARNING_RATE)
        falls = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        scale = features.square().mean().clamp(min=_ANY_SQUARE)
        found = []
        for step in range(1, stops[-1] + 1):
            guesses = inputs * self._unit
            guessed_features = features_as_sent(self._half, guesses, part)
            off = (guessed_features - features) * sent
            if not off.requires_grad:
                raise LeftOut("the device half has no gradient by its inputs")
            error = off.square().sum() / scale
            [inputs.grad] = torch.autograd.grad(error, [inputs])
            optimizer.step()
            falls.step()
            with torch.no_grad():
                inputs.clamp_(self._low, self._high)
            if step in stops:
                guesses = inputs.detach() * self._unit
                found.append(guesses)
        return found
