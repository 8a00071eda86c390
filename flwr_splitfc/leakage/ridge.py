"""Reconstruction by ridge regression: the best linear map from features to inputs.

With features ``F`` (N, D) and inputs ``X`` (N, P) of known samples, both less their
means, and a penalty ``a``, the input of a sample with features ``f``, less the same
mean, is guessed as the mean input and

    f (F^T F + a I)^-1 F^T X  =  f F^T (F F^T + a I)^-1 X                         (1)

of which the second form needs the products of samples alone: a cut is often wider than
the known samples are many.

Where a codec leaves columns of a batch out, others in each batch, one map serves them
all badly. But the server knows which columns came, and has all columns of the samples
that it knows: so (1) is also solved for each batch, on the columns that it has.

Where features have noise, (1) is also solved with the features of known samples without
it, which the device half gives. The penalty then stands for ``N`` times the variance of
the noise, as in a Wiener filter, and is the one that is best on noisy features.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from flwr_splitfc.leakage.attack_settings import AttackSettings
from flwr_splitfc.leakage.evidence import Evidence, Guesses, errors_of
from flwr_splitfc.leakage.releases import Releases

# over the mean square of a known sample's features; from the largest on, with which (1)
# is best conditioned: an error that is not a number is never less than the one before
_POWERS = (4, 3.5, 3, 2.5, 2, 1.5, 1, 0.5, 0, -0.5, *range(-1, -7, -1), -8, -10, -12)
_PENALTIES = [10.0**power for power in _POWERS]
_LEAST_PENALTY = 1e-30  # where all features are alike
_MOST_SAMPLES = 5000  # of which (1) is solved: the matrix then has 200 MB
_COLUMNS_AT_ONCE = 1024


def by_ridge(evidence: Evidence, settings: AttackSettings) -> Guesses:
    """Guess inputs (M, ...) from features with zeros for what did not come."""
    return _by_one_map(evidence, evidence.known.features)


def by_clean_ridge(evidence: Evidence, settings: AttackSettings) -> Guesses | None:
    """Guess inputs (M, ...) by known features before noise and codec.

    None if nothing tells these, or if columns were left out.
    """
    known = evidence.known
    if known.own is None or known.sent is not None:
        return None
    return _by_one_map(evidence, known.own)


def _by_one_map(evidence: Evidence, features: Tensor) -> Guesses:
    """Guess inputs (M, ...) by features (N, ...) of the known samples.

    The penalty is the one that is best on the samples held out. With it, what is
    attacked is guessed from all known samples, up to 5,000.
    """
    standard = evidence.standard
    known = standard(features).flatten(1)  # (N, D)
    held_out = standard(evidence.held_out.features).flatten(1)
    attacked = standard(evidence.attacked.features).flatten(1)  # (M, D)
    kept = known[evidence.kept_rows]
    kept_inputs = evidence.kept.inputs
    tried = list(_guessed(kept, kept_inputs, held_out, _PENALTIES))
    errors = errors_of(tried, evidence.held_out.inputs)
    best = errors.index(min(errors))
    penalty = _PENALTIES[best]
    known_inputs = evidence.known.inputs
    [guesses] = _guessed(known, known_inputs, attacked, [penalty])
    return Guesses(tried[best], guesses)


def by_column_ridge(evidence: Evidence, settings: AttackSettings) -> Guesses | None:
    """Guess inputs (M, ...) from the columns that came with each batch.

    None if all came, or if samples of one batch have different ones.
    """
    batches = _Batch.all_of(evidence, evidence.held_out)
    attacked = _Batch.all_of(evidence, evidence.attacked)
    if not batches or not attacked:
        return None
    tried = _guessed_of_all(batches, evidence.kept, _PENALTIES)
    errors = errors_of(tried, evidence.held_out.inputs)
    best = errors.index(min(errors))
    penalty = _PENALTIES[best]
    [guesses] = _guessed_of_all(attacked, evidence.known, [penalty])
    return Guesses(tried[best], guesses)


class _Batch:
    """What came of the samples of one batch (b, K), and which columns that are (K,)."""

    def __init__(self, features: Tensor, sent: Tensor) -> None:
        self._columns = sent.nonzero()[:, 0]
        self._features = features[:, self._columns]

    @classmethod
    def all_of(cls, evidence: Evidence, releases: Releases) -> list["_Batch"]:
        if releases.sent is None:
            return []
        sizes = releases.batch_sizes
        features = evidence.unscaled(releases).split(sizes)
        sent = releases.sent.split(sizes)
        batches = []
        for batch_features, batch_sent in zip(features, sent, strict=True):
            columns = batch_sent[0]
            if (batch_sent != columns).any():
                return []
            batches.append(cls(batch_features, columns))
        return batches

    def guessed(self, known: Releases, penalties: Sequence[float]) -> Iterator[Tensor]:
        """Yield for each penalty the guesses (b, ...)."""
        own = known.own
        if known.sent is None or own is None:
            own = known.features
        columns = own.flatten(1)[:, self._columns]
        return _guessed(columns, known.inputs, self._features, penalties)


def _guessed_of_all(
    batches: Sequence[_Batch], known: Releases, penalties: Sequence[float]
) -> list[Tensor]:
    """Return for each penalty the guesses (M, ...) for the samples of all batches."""
    of_batches = []
    for batch in batches:
        by_penalty = batch.guessed(known, penalties)
        of_batches.append(list(by_penalty))
    guesses = []
    for of_penalty in zip(*of_batches, strict=True):
        guesses.append(torch.cat(of_penalty))
    return guesses


def _guessed(
    features: Tensor, inputs: Tensor, others: Tensor, penalties: Sequence[float]
) -> Iterator[Tensor]:
    """Yield for each penalty the guesses (M, ...) for the features (M, D) of others."""
    features = features[:_MOST_SAMPLES]
    inputs = inputs[:_MOST_SAMPLES]
    mean = features.mean(0)  # (D,)
    mean_input = inputs.mean(0)
    centred_inputs = (inputs - mean_input).flatten(1).double()  # (N, P)
    samples, columns = features.shape
    is_narrow = columns < samples
    if is_narrow:
        centred_features = (features - mean).double()  # (N, D)
        products = centred_features.T @ centred_features  # (D, D)
        shared = centred_features.T @ centred_inputs  # (D, P)
    else:
        products = _products(features, features, mean)  # (N, N)
        shared = _products(features, others, mean)  # (N, M)
    shape = (len(others), *inputs.shape[1:])
    for solved in _solutions(products, shared, samples, penalties):
        if is_narrow:
            centred_others = (others - mean).double()  # (M, D)
            deviations = centred_others @ solved  # (M, P)
        else:
            deviations = solved.T @ centred_inputs  # (M, P)
        flat = deviations.to(inputs.dtype)
        yield mean_input + flat.reshape(shape)


def _solutions(
    products: Tensor, shared: Tensor, samples: int, penalties: Sequence[float]
) -> Iterator[Tensor]:
    """Yield for each penalty ``(products + a I)^-1 shared``, the inverse of (1)."""
    square_sum = products.diagonal().sum()
    mean_square = square_sum / samples
    for penalty in penalties:
        shrunk = (penalty * mean_square).clamp(min=_LEAST_PENALTY)
        ridge = shrunk * torch.eye(len(products), dtype=products.dtype)
        # not checked, as features may be no numbers where training has diverged
        factor, _ = torch.linalg.cholesky_ex(products + ridge)
        yield torch.cholesky_solve(shared, factor)


def _products(rows: Tensor, others: Tensor, mean: Tensor) -> Tensor:
    """Return the inner products (N, M) of samples less a mean, in float64."""
    total = torch.zeros(len(rows), len(others), dtype=torch.float64)
    lefts = rows.split(_COLUMNS_AT_ONCE, dim=-1)
    rights = others.split(_COLUMNS_AT_ONCE, dim=-1)
    centres = mean.split(_COLUMNS_AT_ONCE, dim=-1)
    for left, right, centre in zip(lefts, rights, centres, strict=True):
        centred_left = (left - centre).double()
        centred_right = (right - centre).double()
        total += centred_left @ centred_right.T
    return total
