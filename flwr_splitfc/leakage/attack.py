"""Reconstruction of inputs from features, by a decoder network or by ridge regression.

The attacker has the features of samples whose inputs it knows, learns the way from one
to the other, and applies it to the features of samples that it does not know. A network
that learns it is a "black-box inverse network" of He, Zhang and Lee, "Model inversion
attacks against collaborative inference", ACSAC 2019. Where features are precise, ridge
regression often comes closer. So both are tried, beside the mean of the known inputs,
and the one that is best on known samples that none of them learned from is used.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flwr_splitfc.exchange.protocol.seeds import torch_seeded
from flwr_splitfc.leakage.decoders import decoder_for
from flwr_splitfc.leakage.known import Guesses, Known, kept_count
from flwr_splitfc.leakage.releases import Releases
from flwr_splitfc.leakage.ridge import by_ridge
from flwr_splitfc.leakage.scores import Scores, scores_of
from flwr_splitfc.model import LossFn

_ROWS_AT_ONCE = 256
# of a column, over that of all: one that hardly varies here may vary elsewhere
_LEAST_SPREAD = 0.1
_ANY_SPREAD = 1e-12


@dataclass(frozen=True)
class AttackSettings:
    """How long and how wide the attacker's network trains.

    Parameters
    ----------
    steps : int (default: 1500)
        Mini-batches; Adam, whose learning rate falls along a cosine to zero.
    batch_size : int (default: 64)
    learning_rate : float (default: 2e-3)
        At first.
    width : int (default: 64)
        Channels of a decoder of images.
    seed : int (default: 0)
        Of the network's weights and of the order of samples.
    """

    steps: int = 1500
    batch_size: int = 64
    learning_rate: float = 2e-3
    width: int = 64
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """What an attack came to on samples that it did not train on.

    Parameters
    ----------
    inputs, guesses : Tensor of shape (N, ...)
    scores : Scores
        Of the guesses.
    trivial : Scores
        Of the attack that always guesses the mean of the inputs that it knows, or
        their commonest tokens.
    attack : str
        What the guesses are made by: "network", "ridge", or "mean" where neither was
        better than the trivial attack; of tokens "network" or "commonest".
    """

    inputs: Tensor
    guesses: Tensor
    scores: Scores
    trivial: Scores
    attack: str


def reconstruct(
    known: Releases, attacked: Releases, settings: AttackSettings | None = None
) -> Reconstruction:
    """Learn from samples that are known to guess the inputs of others.

    Parameters
    ----------
    known : Releases
        Features and inputs that the attacker has, of two samples or more.
    attacked : Releases
        Features that the attacker has, and inputs that are only compared with.
    settings : AttackSettings, optional

    Raises
    ------
    ValueError
        If inputs are neither floating-point numbers nor integers from 0, as tokens are,
        or if one sample is known.
    """
    if len(known.inputs) < 2:
        raise ValueError("the attacker has one sample: wanted 2 or more")
    settings = settings or AttackSettings()
    kept = kept_count(known)
    # by those alone: what is held out is as new to them as what is attacked
    scale = _Standard.of(known.features[:kept])
    samples = Known(scale(known.features), known.inputs, kept)
    features = scale(attacked.features)
    if known.inputs.is_floating_point():
        attack, guesses = _guess_numbers(samples, features, settings)
        trivial = known.inputs.mean(0)
    else:
        attack, guesses = _guess_tokens(samples, features, settings)
        trivial = known.inputs.mode(0).values
    value_range = float(known.inputs.max() - known.inputs.min())
    return Reconstruction(
        inputs=attacked.inputs,
        guesses=guesses,
        scores=scores_of(attacked.inputs, guesses, value_range),
        trivial=scores_of(attacked.inputs, trivial.expand_as(guesses), value_range),
        attack=attack,
    )


def _guess_numbers(
    known: Known, attacked: Tensor, settings: AttackSettings
) -> tuple[str, Tensor]:
    """Return the best attack's name and its guesses (M, ...)."""
    _, inputs = known.kept
    tried = {
        "mean": _constant(inputs.mean(0), known, attacked),
        "ridge": by_ridge(known, attacked),
        "network": _numbers_by_network(known, attacked, settings),
    }
    low, high = known.inputs.min(), known.inputs.max()
    within = {
        name: Guesses(*(part.clamp(low, high) for part in guesses))
        for name, guesses in tried.items()
    }
    return _best(within, known, lambda guesses, inputs: F.mse_loss(guesses, inputs))


def _guess_tokens(
    known: Known, attacked: Tensor, settings: AttackSettings
) -> tuple[str, Tensor]:
    if known.inputs.is_complex() or known.inputs.min() < 0:
        raise ValueError(
            f"inputs are {known.inputs.dtype} from {known.inputs.min()}: wanted "
            "floating-point numbers, or integers from 0"
        )
    _, inputs = known.kept
    tried = {
        "commonest": _constant(inputs.mode(0).values, known, attacked),
        "network": _tokens_by_network(known, attacked, settings),
    }
    return _best(
        tried, known, lambda guesses, tokens: (guesses != tokens).float().mean()
    )


def _best(
    tried: Mapping[str, Guesses], known: Known, error_of: LossFn
) -> tuple[str, Tensor]:
    """Return the name and the guesses of what is best on the samples held out."""
    _, wanted = known.held_out
    errors = {
        name: error_of(guesses.held_out, wanted).item()
        for name, guesses in tried.items()
    }
    # of equals the first, which is the one that sees no features
    best = min(errors, key=errors.__getitem__)
    return best, tried[best].attacked


def _constant(guess: Tensor, known: Known, attacked: Tensor) -> Guesses:
    counts = len(known.inputs) - known.kept_count, len(attacked)
    return Guesses(*(guess.expand(count, *guess.shape) for count in counts))


def _numbers_by_network(
    known: Known, attacked: Tensor, settings: AttackSettings
) -> Guesses:
    features, inputs = known.kept
    mean = inputs.mean(0)
    # the network says how an input differs from their mean
    decoder = _trained(features, inputs - mean, F.mse_loss, settings)
    held_out, _ = known.held_out
    return Guesses(
        mean + _decoded(decoder, held_out), mean + _decoded(decoder, attacked)
    )


def _tokens_by_network(
    known: Known, attacked: Tensor, settings: AttackSettings
) -> Guesses:
    features, tokens = known.kept
    decoder = _trained(features, tokens.long(), F.cross_entropy, settings)
    held_out, _ = known.held_out
    # scores are (M, tokens, ...)
    return Guesses(
        _decoded(decoder, held_out).argmax(1), _decoded(decoder, attacked).argmax(1)
    )


@dataclass(frozen=True, eq=False)
class _Standard:
    """Brings features to mean 0 and spread 1: over samples, and places if there are."""

    mean: Tensor
    spread: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "_Standard":
        over = [dim for dim in range(features.ndim) if dim != 1]
        mean = features.mean(over, keepdim=True)
        spread = features.std(over, keepdim=True)
        least = max(_LEAST_SPREAD * spread.mean().item(), _ANY_SPREAD)
        return cls(mean, spread.clamp(min=least))

    def __call__(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.spread


def _trained(
    features: Tensor, wanted: Tensor, loss_fn: LossFn, settings: AttackSettings
) -> nn.Module:
    """Train a decoder from features (N, ...) to what is wanted of each (N, ...)."""
    tokens = 0 if wanted.is_floating_point() else int(wanted.max()) + 1
    shapes = features.shape[1:], wanted.shape[1:]
    with torch_seeded(settings.seed):
        decoder = decoder_for(*shapes, settings.width, tokens=tokens)
        optimizer = torch.optim.Adam(decoder.parameters(), lr=settings.learning_rate)
        falls = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
        for _ in range(settings.steps):
            rows = torch.randint(len(features), (settings.batch_size,))
            loss = loss_fn(decoder(features[rows]), wanted[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            falls.step()
    return decoder


@torch.no_grad()
def _decoded(decoder: nn.Module, features: Tensor) -> Tensor:
    decoder.eval()
    return torch.cat([decoder(rows) for rows in features.split(_ROWS_AT_ONCE)])
