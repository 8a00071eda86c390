"""What a device does to its features before they are coded and sent.

The guarantee of noise is that of real numbers. A sum of floating-point numbers has
lost other bits for each feature, and so tells features apart (Mironov, "On significance
of the least significant bits for differential privacy", CCS 2012). So the sum is taken
in float64 and rounded to a grid that is the same for all features: the finest of which
float32 holds every value that occurs.
"""

from dataclasses import dataclass, field
from math import frexp, ldexp

import torch
from torch import Tensor

from flwr_splitfc.defence.distance_correlation import distance_correlation
from flwr_splitfc.defence.secret_noise import LONGEST_NOISE, SecretNoise
from flwr_splitfc.model.structures import (
    Structure,
    float_tensors,
    is_float,
    leaves_of,
    mapped,
    shapes_of,
)

_SENT_BITS = 24  # of a float32's significand
_MOST_CLIPPED = 1.02  # an entry, over the norm: float32 rounds up, by far less
_LARGEST = 1e18  # of a setting: the product of two is far from float32's end
_LEAST_SQUARE = torch.finfo(torch.float32).tiny  # a root's slope is infinite at 0


@dataclass(frozen=True)
class FeatureDefence:
    """Defences of features, each by one setting; 0 leaves it out.

    Where features are several tensors, the floating-point ones are defended together.
    Others, such as masks, go as they are.

    Parameters
    ----------
    clip_norm : float (default: 0)
        The most that the features of a sample are long, as one vector: longer ones are
        scaled down. Those of NaN or inf, or longer than 1e19, become zeros. A sample is
        a row of the inputs, and features have one for each.
    noise : float (default: 0)
        The standard deviation of normal noise on each entry, over `clip_norm`. Both
        together give (epsilon, delta), see `feature_epsilon`. Noisy features are
        float32, or float64 where features are.
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
            if not 0 <= value <= _LARGEST:
                raise ValueError(
                    f"{name} is {value}, wanted a number from 0 to {_LARGEST:g}"
                )
        if self.noise and not self.clip_norm:
            raise ValueError(
                f"noise is {self.noise} without a clip_norm: give the norm to which "
                "features are clipped"
            )

    def __call__(self, inputs: Structure, features: Structure) -> Structure:
        """Return the features (B, ...) of some inputs (B, ...) as they may be sent.

        Of inputs in several tensors ``B`` is the fewest rows. A tensor of one row does
        not count: all samples share it. A list may have a tensor for each sample.

        The distance correlation is in no loss: the backward pass adds its gradient to
        that of the features, whatever the loss is. Without a graph it is left out.

        Raises
        ------
        ValueError
            If there are no floating-point numbers to clip or to correlate, or if
            features to clip have other rows than inputs.
        """
        if self.clip_norm:
            _check_rows(inputs, features)
        features = self.clipped(features)
        if self.nopeek and any(part.requires_grad for part in float_tensors(features)):
            penalty = self.nopeek * distance_correlation(_rows(inputs), _rows(features))
            features = _with_penalty(features, penalty)
        return self._noisy(features)

    def clipped(self, features: Structure) -> Structure:
        """Return features (B, ...) of which no sample's are longer than `clip_norm`.

        The floating-point tensors of a sample are one vector. They come back as the
        type that they are, which rounds them; or with noise as that of noisy features.
        """
        if not self.clip_norm:
            return features
        rows = _rows(features)
        # NaN and inf fail in a codec, and that a turn fails would tell of the sample
        endless = ~_lengths(rows.detach()).isfinite()
        # before lengths are taken: behind that, their gradient is NaN
        rows = rows.masked_fill(endless[:, None], 0)
        factors = self.clip_norm / _lengths(rows).clamp(min=self.clip_norm)

        def scaled(leaf: Tensor) -> Tensor:
            if not is_float(leaf):
                return leaf
            per_sample = (-1, *[1] * (leaf.ndim - 1))
            finite = leaf.masked_fill(endless.reshape(per_sample), 0)
            # in float32: a small factor is far off in float16
            shorter: Tensor = finite * factors.reshape(per_sample)
            return shorter if self.noise else shorter.to(leaf.dtype)

        return mapped(features, scaled)

    def _noisy(self, features: Structure) -> Structure:
        if not self.noise:
            return features
        spread = self.noise * self.clip_norm
        most = _MOST_CLIPPED * self.clip_norm + LONGEST_NOISE * spread
        _, exponent = frexp(most)
        grid = ldexp(1.0, exponent - _SENT_BITS)

        def noisy(leaf: Tensor) -> Tensor:
            if not is_float(leaf):
                return leaf
            noise = self.source.normal(leaf.shape)
            exact = leaf.detach().cpu().double() + spread * noise
            sent = grid * (exact / grid).round()
            dtype = torch.promote_types(leaf.dtype, torch.float32)
            noisier: Tensor = _Replaced.apply(leaf, sent.to(leaf.device, dtype))
            return noisier

        return mapped(features, noisy)


def _check_rows(inputs: Structure, features: Structure) -> None:
    """Refuse features in which a sample may have several rows.

    Each would be clipped by itself, and the sample be longer than the norm.
    """
    rows = {tuple(part.shape[:1]) for part in float_tensors(features)}
    # one row is all that any sample can have
    samples = {(1,), (_samples_of(inputs),)}
    if isinstance(inputs, list) and all(isinstance(one, Tensor) for one in inputs):
        samples.add((len(inputs),))
    if len(rows) <= 1 and rows <= samples:
        return
    raise ValueError(
        f"features have the shape {shapes_of(features)}, inputs {shapes_of(inputs)}: "
        "to clip samples, wanted a row of features for each, such as (B, T, C) in "
        "place of (B * T, C), and labels (B, T). What samples share in the inputs, "
        "such as the edges of a graph, wants a first axis of 1"
    )


def _samples_of(inputs: Structure) -> int:
    """Return ``B``; 1 where no tensor tells it."""
    tensors = [leaf for leaf in leaves_of(inputs) if isinstance(leaf, Tensor)]
    counts = [len(tensor) for tensor in tensors if tensor.ndim]
    return min((count for count in counts if count != 1), default=1)


def _rows(structure: Structure) -> Tensor:
    """Return what floating-point tensors hold of each sample, (B, D)."""
    tensors = float_tensors(structure)
    if not tensors:
        raise ValueError(
            f"there are no floating-point numbers in {shapes_of(structure)}, and "
            "neither clipping nor nopeek is about anything else"
        )
    # not -1, which is undecided where there is no row
    rows = [
        tensor.reshape(len(tensor), tensor.shape[1:].numel()).float()
        for tensor in tensors
    ]
    return torch.cat(rows, dim=1)


def _lengths(rows: Tensor) -> Tensor:
    """Return the norm of each row, (B,); NaN or inf where no float32 is its square.

    torch adds in pairs what it sums, and one by one in a norm: of a million entries
    that is a thousandth too short.
    """
    return rows.square().sum(dim=1).clamp(min=_LEAST_SQUARE).sqrt()


def _with_penalty(features: Structure, penalty: Tensor) -> Structure:
    """Let the backward pass through features go into a penalty, too."""
    left = [penalty]

    def penalised(leaf: Tensor) -> Tensor:
        if not (is_float(leaf) and leaf.requires_grad and left):
            return leaf
        through: Tensor = _WithPenalty.apply(leaf, left.pop())
        return through

    return mapped(features, penalised)


class _Replaced(torch.autograd.Function):
    """Other features in the place of some; the gradient is that of a sum."""

    @staticmethod
    def forward(ctx, features: Tensor, sent: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.dtype = features.dtype
        return sent.view_as(sent)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        return gradient.to(ctx.dtype), None


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
