"""Reconstruction of inputs from features, by a decoder network.

The attacker has the features of samples whose inputs it knows, trains a network from
one to the other, and applies it to the features of samples that it does not know. Such
a "black-box inverse network" is among the attacks of He, Zhang and Lee, "Model
inversion attacks against collaborative inference", ACSAC 2019.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flwr_splitfc.exchange.protocol.seeds import torch_seeded
from flwr_splitfc.leakage.decoders import decoder_for
from flwr_splitfc.leakage.releases import Releases
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
    """

    inputs: Tensor
    guesses: Tensor
    scores: Scores
    trivial: Scores


def reconstruct(
    known: Releases, attacked: Releases, settings: AttackSettings | None = None
) -> Reconstruction:
    """Train a decoder on samples that are known, and apply it to others.

    Parameters
    ----------
    known : Releases
        Features and inputs that the attacker has.
    attacked : Releases
        Features that the attacker has, and inputs that are only compared with.
    settings : AttackSettings, optional

    Raises
    ------
    ValueError
        If inputs are neither floating-point numbers nor integers from 0, as tokens are.
    """
    settings = settings or AttackSettings()
    scale = _Standard.of(known.features)
    features = scale(known.features)
    attacked_features = scale(attacked.features)
    if known.inputs.is_floating_point():
        guess: _Guess = _guess_numbers
    else:
        guess = _guess_tokens
    guesses, trivial = guess(features, known.inputs, attacked_features, settings)
    trivial = trivial.expand_as(guesses)
    value_range = float(known.inputs.max() - known.inputs.min())
    return Reconstruction(
        inputs=attacked.inputs,
        guesses=guesses,
        scores=scores_of(attacked.inputs, guesses, value_range),
        trivial=scores_of(attacked.inputs, trivial, value_range),
    )


_Guess: TypeAlias = Callable[
    [Tensor, Tensor, Tensor, AttackSettings], tuple[Tensor, Tensor]
]
"""Gives guesses (M, ...), and the guess of one who sees no features."""


def _guess_numbers(
    features: Tensor, inputs: Tensor, attacked: Tensor, settings: AttackSettings
) -> tuple[Tensor, Tensor]:
    mean = inputs.mean(0)
    # the network says how an input differs from their mean
    decoder = _trained(features, inputs - mean, F.mse_loss, settings)
    guesses = mean + _decoded(decoder, attacked)
    return guesses.clamp(inputs.min(), inputs.max()), mean


def _guess_tokens(
    features: Tensor, inputs: Tensor, attacked: Tensor, settings: AttackSettings
) -> tuple[Tensor, Tensor]:
    if inputs.is_complex() or inputs.min() < 0:
        raise ValueError(
            f"inputs are {inputs.dtype} from {inputs.min()}: wanted floating-point "
            "numbers, or integers from 0"
        )
    inputs = inputs.long()
    decoder = _trained(features, inputs, F.cross_entropy, settings)
    # scores are (M, tokens, ...)
    return _decoded(decoder, attacked).argmax(1), inputs.mode(0).values


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
