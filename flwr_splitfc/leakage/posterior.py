"""Reconstruction by the mean of known inputs, weighted by how likely each is.

Features ``f`` that came with normal noise of variance ``v`` are those of known sample
``n``, whose features without noise are ``f_n``, with a probability, and what is guessed
is the mean of known inputs ``x_n`` by it:

    p_n  ~  exp(-|f - f_n|^2 / (2 v)),    x = sum_n p_n x_n                       (1)

over the entries of ``f`` that were sent. The variance that is best on the samples held
out is taken, so noise need not be known, nor be normal.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from flwr_splitfc.leakage.attack_settings import AttackSettings
from flwr_splitfc.leakage.evidence import Evidence, Guesses
from flwr_splitfc.leakage.releases import Releases

# over the mean square of a sample's features, summed over their entries
_VARIANCES = [10.0 ** (power / 4) for power in range(4, -25, -1)]
_ANY_SQUARE = 1e-30
_COLUMNS_AT_ONCE = 1024


def by_posterior(evidence: Evidence, settings: AttackSettings) -> Guesses | None:
    """Guess inputs (M, ...); None if nothing tells features without noise."""
    if evidence.known.own is None:
        return None
    squares = _squares(evidence, evidence.kept, evidence.held_out)
    unit = evidence.unscaled(evidence.kept).square().sum(1).mean()
    variances = [(each * unit).clamp(min=_ANY_SQUARE) for each in _VARIANCES]
    tried = [_mean_inputs(evidence.kept, squares, each) for each in variances]
    wanted = evidence.held_out.inputs
    errors = [F.mse_loss(guesses, wanted).item() for guesses in tried]
    best = errors.index(min(errors))
    squares = _squares(evidence, evidence.known, evidence.attacked)
    return Guesses(tried[best], _mean_inputs(evidence.known, squares, variances[best]))


def _squares(evidence: Evidence, known: Releases, others: Releases) -> Tensor:
    """Return the squared distances (M, N) of (1), less what is the same for all ``n``.

    In float64: of squares of thousands of entries a difference is left. Some columns
    at a time, since a cut may be wide.
    """
    assert known.own is not None  # by_posterior has looked
    columns = known.own.flatten(1), evidence.unscaled(others), evidence.sent(others)
    parts = [matrix.split(_COLUMNS_AT_ONCE, dim=1) for matrix in columns]
    total = torch.zeros(len(others.inputs), len(known.inputs), dtype=torch.float64)
    for own, features, sent in zip(*parts, strict=True):
        exact = own.double()
        total += sent.double() @ exact.square().T
        total -= 2 * (sent * features).double() @ exact.T
    return total


def _mean_inputs(known: Releases, squares: Tensor, variance: Tensor) -> Tensor:
    """Return the guesses (M, ...) for squared distances (M, N)."""
    weights = (squares / (-2 * variance)).softmax(1).to(known.inputs.dtype)
    guesses: Tensor = torch.tensordot(weights, known.inputs, dims=1)
    return guesses
