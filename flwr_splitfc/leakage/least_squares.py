"""Reconstruction through a linear device half: its map is known, and so is undone."""

import torch
from torch import Tensor, nn

from flwr_splitfc.leakage.attack_settings import AttackSettings
from flwr_splitfc.leakage.evidence import Evidence, Guesses
from flwr_splitfc.leakage.replay import features_of, replayed

_ROWS_AT_ONCE = 256
_MOST_ENTRIES = 2**25  # of the map: 256 MB
_TOLERANCE = 1e-4  # over the features' size


@torch.no_grad()
def by_least_squares(evidence: Evidence, settings: AttackSettings) -> Guesses | None:
    """Guess inputs (M, ...) by least squares; None if the half is not linear."""
    half = evidence.half
    known = evidence.known
    if half is None or known.part or known.sent is not None:
        return None
    inputs = evidence.kept.inputs
    features = evidence.kept.features
    entries = inputs[0].numel() * features[0].numel()
    if entries > _MOST_ENTRIES:
        return None
    mean = inputs.mean(0, keepdim=True)  # (1, ...)
    with replayed(half):
        if not _is_linear(half, inputs):
            return None
        start = features_of(half, mean)  # (1, D)
        slopes = _slopes(half, mean, start)  # (P, D)
    guesses = []
    for releases in (evidence.held_out, evidence.attacked):
        arrived = releases.features.flatten(1)  # (M, D)
        moved = (arrived - start).double()
        solved = torch.linalg.lstsq(slopes.T, moved.T, driver="gelsd")
        steps = solved.solution.T  # (M, P)
        shaped = steps.reshape(-1, *mean.shape[1:])
        guesses.append(mean + shaped.float())
    held_out, attacked = guesses
    return Guesses(held_out, attacked)


def _slopes(half: nn.Module, mean: Tensor, start: Tensor) -> Tensor:
    """Return by how much a step of 1 in each entry of inputs moves the features.

    Parameters
    ----------
    mean : Tensor of shape (1, ...)
        The input from which steps go, of P entries.
    start : Tensor of shape (1, D)
        Its features.

    Returns
    -------
    Tensor of shape (P, D)
        float64.
    """
    unit_steps = torch.eye(mean.numel())  # (P, P)
    steps = unit_steps.reshape(-1, *mean.shape[1:])  # (P, ...)
    slopes = []
    for some_steps in steps.split(_ROWS_AT_ONCE):
        features = features_of(half, mean + some_steps)
        slopes.append(features - start)
    return torch.cat(slopes).double()


def _is_linear(half: nn.Module, inputs: Tensor) -> bool:
    """Tell whether features of a mean are the mean of features."""
    count = min(len(inputs), _ROWS_AT_ONCE) // 2
    ones = inputs[:count]
    others = inputs[count : 2 * count]
    features = features_of(half, torch.cat([ones, others]))  # (2 count, D)
    mean_of_inputs = (ones + others) / 2
    mean_of_features = (features[:count] + features[count:]) / 2
    features_of_mean = features_of(half, mean_of_inputs)
    off = features_of_mean - mean_of_features
    tolerance = _TOLERANCE * features.norm()
    return bool(off.norm() <= tolerance)
