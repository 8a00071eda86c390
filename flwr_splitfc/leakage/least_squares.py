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
    half, inputs = evidence.half, evidence.kept.inputs
    entries = inputs[0].numel() * evidence.kept.features[0].numel()
    if half is None or evidence.known.part or entries > _MOST_ENTRIES:
        return None
    if evidence.known.sent is not None:
        return None
    mean = inputs.mean(0, keepdim=True)
    with replayed(half):
        if not _is_linear(half, inputs):
            return None
        steps = torch.eye(mean.numel()).reshape(-1, *mean.shape[1:])
        start = features_of(half, mean)
        rows = [
            features_of(half, mean + step) - start
            for step in steps.split(_ROWS_AT_ONCE)
        ]
    slopes = torch.cat(rows).double()  # (P, D)
    guesses = []
    for releases in (evidence.held_out, evidence.attacked):
        moved = (releases.features.flatten(1) - start).double()
        found = torch.linalg.lstsq(slopes.T, moved.T, driver="gelsd").solution.T
        guesses.append(mean + found.reshape(-1, *mean.shape[1:]).float())
    return Guesses(*guesses)


def _is_linear(half: nn.Module, inputs: Tensor) -> bool:
    """Tell whether features of a mean are the mean of features."""
    count = min(len(inputs), _ROWS_AT_ONCE) // 2
    ones, others = inputs[:count], inputs[count : 2 * count]
    features = features_of(half, torch.cat([ones, others]))
    mean = (features[:count] + features[count:]) / 2
    off = features_of(half, (ones + others) / 2) - mean
    return bool(off.norm() <= _TOLERANCE * features.norm())
