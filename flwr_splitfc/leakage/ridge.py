"""Reconstruction by ridge regression: the best linear map from features to inputs.

With features ``F`` (N, D) and inputs ``X`` (N, P) of known samples, both less their
means, and a penalty ``a``, the input of a sample with features ``f``, less the same
mean, is guessed as the mean input and

    w X,   w = f F^T (F F^T + a I)^-1                                             (1)

This is the dual form, which needs the products of samples alone: a cut is often wider
than the known samples are many.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from flwr_splitfc.leakage.known import Guesses, Known

# over the mean square of a known sample's features; from the largest on, with which (1)
# is best conditioned: an error that is not a number is never less than the one before
_PENALTIES = [10.0**power for power in range(2, -7, -1)]
_LEAST_PENALTY = 1e-30  # where all features are alike
_MOST_SAMPLES = 5000  # of which (1) is solved: the matrix then has 200 MB
_COLUMNS_AT_ONCE = 1024


def by_ridge(known: Known, attacked: Tensor) -> Guesses:
    """Guess the inputs of features (M, ...).

    The penalty is the one that is best on the samples held out. With it, what is
    attacked is guessed from all known samples, up to 5,000.
    """
    held_features, held_inputs = known.held_out
    tried = list(_guessed(*known.kept, held_features, _PENALTIES))
    errors = [F.mse_loss(guesses, held_inputs).item() for guesses in tried]
    best = errors.index(min(errors))
    every = known.features, known.inputs
    [guesses] = _guessed(*every, attacked, _PENALTIES[best : best + 1])
    return Guesses(tried[best], guesses)


def _guessed(
    features: Tensor, inputs: Tensor, others: Tensor, penalties: Sequence[float]
) -> Iterator[Tensor]:
    """Yield for each penalty the guesses (M, ...) for the features of others."""
    features, inputs = features[:_MOST_SAMPLES], inputs[:_MOST_SAMPLES]
    mean = features.mean(0)
    own = _products(features, features, mean)  # (N, N)
    shared = _products(features, others, mean)  # (N, M)
    mean_square = own.diagonal().mean()
    mean_input = inputs.mean(0)
    centred = (inputs - mean_input).flatten(1)
    for penalty in penalties:
        shrunk = (penalty * mean_square).clamp(min=_LEAST_PENALTY)
        ridge = shrunk * torch.eye(len(own), dtype=own.dtype)
        # not checked, as features may be no numbers where training has diverged
        factor, _ = torch.linalg.cholesky_ex(own + ridge)
        weights = torch.cholesky_solve(shared, factor).T  # (M, N)
        guesses = weights.to(centred.dtype) @ centred
        yield mean_input + guesses.reshape(len(others), *inputs.shape[1:])


def _products(rows: Tensor, others: Tensor, mean: Tensor) -> Tensor:
    """Return the inner products (N, M) of samples less a mean, in float64."""
    total = torch.zeros(len(rows), len(others), dtype=torch.float64)
    parts = [
        matrix.flatten(-len(mean.shape)).split(_COLUMNS_AT_ONCE, dim=-1)
        for matrix in (rows, others, mean)
    ]
    for left, right, centre in zip(*parts, strict=True):
        total += (left - centre).double() @ (right - centre).double().T
    return total
