"""What a device does to its features before they are coded and sent."""

from dataclasses import dataclass, field
from math import isfinite

import torch
from torch import Tensor

from flwr_splitfc.defence.distance_correlation import distance_correlation
from flwr_splitfc.defence.secret_noise import SecretNoise


@dataclass(frozen=True)
class FeatureDefence:
    """Defences of features, each by one setting; 0 leaves it out.

    Parameters
    ----------
    clip_norm : float (default: 0)
        The most that the features of a sample are long, as one vector: longer ones are
        scaled down.
    noise : float (default: 0)
        The standard deviation of normal noise on each entry, over `clip_norm`. Both
        together give (epsilon, delta), see `feature_epsilon`.
    nopeek : float (default: 0)
        The weight, in the device half's loss, of the distance correlation between
        inputs and features (2008.09161).
    source : SecretNoise, optional
        Of the noise; by default a new one.

    Raises
    ------
    ValueError
        If a number is negative or not finite, or there is noise without a norm.

    Examples
    --------
    In a training loop of one's own::

        defence = FeatureDefence(clip_norm=10.0, noise=0.1)
        for x, y in trainloader:
            features = defence(x, model(x))
            server.loss(features, y).backward()
    """

    clip_norm: float = 0.0
    noise: float = 0.0
    nopeek: float = 0.0
    source: SecretNoise = field(default_factory=SecretNoise, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("clip_norm", "noise", "nopeek"):
            value = getattr(self, name)
            if not (isfinite(value) and value >= 0):
                raise ValueError(f"{name} is {value}, wanted a finite number from 0")
        if self.noise and not self.clip_norm:
            raise ValueError(
                f"noise is {self.noise} without a clip_norm: give the norm to which "
                "features are clipped"
            )

    def __call__(self, inputs: Tensor, features: Tensor) -> Tensor:
        """Return the features (B, ...) of some inputs (B, ...) as they may be sent.

        The distance correlation is in no loss: the backward pass adds its gradient to
        that of the features, whatever the loss is. Without a graph it is left out.
        """
        features = self.clipped(features)
        if self.nopeek and features.requires_grad:
            penalty = self.nopeek * distance_correlation(inputs, features)
            features = _WithPenalty.apply(features, penalty)
        if self.noise:
            noise = self.source.normal(features.shape).to(features)
            features = features + self.noise * self.clip_norm * noise
        return features

    def clipped(self, features: Tensor) -> Tensor:
        """Return features (B, ...) of which no sample's are longer than `clip_norm`."""
        if not self.clip_norm:
            return features
        norms = torch.linalg.vector_norm(features.flatten(1).float(), dim=1)
        factors = (self.clip_norm / norms.clamp(min=self.clip_norm)).to(features.dtype)
        return features * factors.reshape(-1, *[1] * (features.ndim - 1))


class _WithPenalty(torch.autograd.Function):
    """Features as they are; the backward pass goes into a penalty, too."""

    @staticmethod
    def forward(ctx, features: Tensor, penalty: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(torch.ones_like(penalty))
        return features.view_as(features)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
        (one,) = ctx.saved_tensors
        return gradient, one
