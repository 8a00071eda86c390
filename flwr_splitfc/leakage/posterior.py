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

from flwr_splitfc.leakage.attack_settings import AttackSettings
from flwr_splitfc.leakage.evidence import Evidence, Guesses, errors_of
from flwr_splitfc.leakage.releases import Releases

# over the mean square of a sample's features, summed over their entries
_VARIANCES = [10.0 ** (power / 4) for power in range(4, -25, -1)]
_ANY_SQUARE = 1e-30
_COLUMNS_AT_ONCE = 1024


def by_posterior(evidence: Evidence, settings: AttackSettings) -> Guesses | None:
    """Guess inputs (M, ...); None if nothing tells features without noise."""
    if evidence.known.own is None:
        return None
    kept = evidence.kept
    squares = _squares(evidence, kept, evidence.held_out)
    square_sums = evidence.unscaled(kept).square().sum(1)  # (N,)
    unit = square_sums.mean()
    variances = []
    tried = []
    for in_units in _VARIANCES:
        variance = (in_units * unit).clamp(min=_ANY_SQUARE)
        guesses = _mean_inputs(kept, squares, variance)
        variances.append(variance)
        tried.append(guesses)
    errors = errors_of(tried, evidence.held_out.inputs)
    best = errors.index(min(errors))
    squares = _squares(evidence, evidence.known, evidence.attacked)
    attacked = _mean_inputs(evidence.known, squares, variances[best])
    return Guesses(tried[best], attacked)


def _squares(evidence: Evidence, known: Releases, others: Releases) -> Tensor:
    """Return the squared distances (M, N) of (1), less what is the same for all ``n``.

    In float64: of squares of thousands of entries a difference is left. Some columns
    at a time, since a cut may be wide.
    """
    assert known.own is not None  # by_posterior has looked
    own_parts = known.own.flatten(1).split(_COLUMNS_AT_ONCE, dim=1)
    parts = evidence.unscaled(others).split(_COLUMNS_AT_ONCE, dim=1)
    sent_parts = evidence.sent(others).split(_COLUMNS_AT_ONCE, dim=1)
    shape = (len(others.inputs), len(known.inputs))
    total = torch.zeros(shape, dtype=torch.float64)
    for own, features, sent in zip(own_parts, parts, sent_parts, strict=True):
        exact = own.double()  # (N, columns)
        sent_features = (sent * features).double()  # (M, columns)
        total += sent.double() @ exact.square().T
        total -= 2 * sent_features @ exact.T
    return total


def _mean_inputs(known: Releases, squares: Tensor, variance: Tensor) -> Tensor:
    """Return the guesses (M, ...) for squared distances (M, N)."""
    exponents = squares / (-2 * variance)
    weights = exponents.softmax(1).to(known.inputs.dtype)
    guesses: Tensor = torch.tensordot(weights, known.inputs, dims=1)
    return guesses
