"""The device half, run again by the attacker: from guessed inputs to features."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from flwr_splitfc.leakage.evidence import Evidence, LeftOut
from flwr_splitfc.leakage.releases import Releases
from flwr_splitfc.model.stand_ins import call_with
from flwr_splitfc.model.structures import float_tensors

MOST_FLOPS = 5e12
"""What an attack may compute by running the half: minutes of a core."""

_ROWS_AT_ONCE = 256
_AS_CLOSE = 1.01  # over the other squared error: kernels of evaluation round otherwise


@contextmanager
def replayed(half: nn.Module, *, as_sent: bool = False) -> Iterator[None]:
    """Let a half compute as it did in training.

    Batch normalisation goes by the batch, if it did: so what is replayed has to be
    whole batches. The half and torch's generator are left as they were.

    Parameters
    ----------
    half : nn.Module
    as_sent : bool (default: False)
        Whether dropout is on, if it was. `features_as_sent` draws what was drawn then.
    """
    modes = {module: module.training for module in half.modules()}
    if not as_sent:
        half.eval()
        for module, training in modes.items():
            if isinstance(module, _BatchNorm):
                module.train(training)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for module, training in modes.items():
            module.training = training


@torch.no_grad()
def comes_again(evidence: Evidence) -> bool:
    """Tell whether the half gives features of known samples again as they were sent.

    If not, they are closer to what was sent with dropout off: the half draws from
    elsewhere than torch's generator, or nothing tells that generator's state.
    """
    half, known = evidence.half, evidence.held_out
    if half is None or known.part or known.own is None:
        return True
    # not what arrived: a coarse codec leaves means, to which dropout off is closer
    wanted = known.own.flatten(1)
    errors = []
    for as_sent in (True, False):
        try:
            features = _again(half, known, as_sent)
        except LeftOut:
            # the attacks tell
            return True
        # some halves give more in training
        fits = features.shape == wanted.shape
        off = features - wanted if fits else torch.tensor(torch.inf)
        errors.append(off.square().mean().item())
    drawn, not_drawn = errors
    # of features that are no numbers, neither is closer
    return not drawn > _AS_CLOSE * not_drawn


@torch.no_grad()
def without_noise(evidence: Evidence) -> Releases:
    """Return the known releases, whose own features (N, ...) are what the half gives.

    The noise of a defence comes after the half. They stay as they are if the half does
    not give them.
    """
    half, known = evidence.half, evidence.known
    if half is None or known.part or known.own is None:
        return known
    try:
        own = _again(half, known, evidence.as_sent)
    except LeftOut:
        return known
    if own.shape != known.own.flatten(1).shape:
        return known
    return replace(known, own=own.reshape(known.own.shape))


def _again(half: nn.Module, known: Releases, as_sent: bool) -> Tensor:
    """Return the half's features (N, D) of inputs that are known."""
    with replayed(half, as_sent=as_sent):
        parts = at_once(half, known)
        return torch.cat([features_as_sent(half, part.inputs, part) for part in parts])


def at_once(half: nn.Module, releases: Releases) -> list[Releases]:
    """Return releases in parts to run at once: batches, if what is drawn goes by them.

    So does batch normalisation.
    """
    by_batch = releases.draws or _goes_by_batch(half)
    if by_batch and releases.batch is not None:
        return releases.split(releases.batch_sizes)
    rows = releases.inputs.split(_ROWS_AT_ONCE)
    return releases.split([len(part) for part in rows])


def _goes_by_batch(half: nn.Module) -> bool:
    return any(
        isinstance(module, _BatchNorm) and module.training for module in half.modules()
    )


@torch.no_grad()
def flops_of_row(half: nn.Module, known: Releases) -> float:
    """Return the floating-point operations that a sample's features cost."""
    first = at_once(half, known)[0]
    with FlopCounterMode(display=False) as counter:
        features_as_sent(half, first.inputs, first)
    total: int = counter.get_total_flops()
    return total / len(first.inputs)


def features_as_sent(half: nn.Module, inputs: Tensor, part: Releases) -> Tensor:
    """Return the features (b, D) of inputs (b, ...) as if sent in a batch's place.

    What is drawn goes by the rows of the whole batch. For rows that are not in the part
    the others stand in.

    Parameters
    ----------
    half : nn.Module
        Within `replayed`, which puts torch's generator back.
    inputs : Tensor of shape (b, ...)
    part : Releases
        Of `at_once`, with as many samples.
    """
    drawn = part.drawn
    if drawn is None or part.place is None:
        return features_of(half, inputs)
    count = len(inputs)
    rows = torch.arange(drawn.rows) % count
    rows[part.place] = torch.arange(count)
    torch.set_rng_state(drawn.state)
    return features_of(half, inputs[rows])[part.place]


def features_of(half: nn.Module, inputs: Tensor) -> Tensor:
    """Return the features (B, D) of inputs (B, ...); the half's buffers stay.

    Raises
    ------
    LeftOut
        If the half fails, as on numbers where it wants something else.
    """
    # a pass in training changes some: the next would begin from others
    buffers = {name: buffer.clone() for name, buffer in half.named_buffers()}
    try:
        # and some halves change their inputs
        features = call_with(half, buffers, inputs.clone())
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise LeftOut(f"the device half does not run again: {reason}") from error
    rows = [tensor.flatten(1).float() for tensor in float_tensors(features)]
    return torch.cat(rows, dim=1)
