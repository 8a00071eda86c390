"""The defence of features that a run-config asks for, and where it stands."""

from dataclasses import dataclass
from functools import cache
from logging import getLogger
from typing import Any

from flwr.app import Context
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from flwr_splitfc.defence import FeatureDefence, SecretNoise
from flwr_splitfc.model import DecoupledHalf, HeadAndTail
from flwr_splitfc.model.structures import Structure
from flwr_splitfc.settings import RunConfig, read_settings

logger = getLogger("flwr")


@dataclass(frozen=True)
class _DefenceSettings:
    """The keys of a run-config, and of a node's config, in snake case."""

    feature_clip_norm: float = 0.0
    feature_noise: float = 0.0
    nopeek: float = 0.0


def defence_of(config: RunConfig, source: SecretNoise | None = None) -> FeatureDefence:
    """Return the defence of a run-config.

    >>> defence_of({"feature-clip-norm": 10.0, "feature-noise": 0.1, "seed": 7})
    FeatureDefence(clip_norm=10.0, noise=0.1, nopeek=0.0)
    """
    settings = read_settings(_DefenceSettings, config)
    return FeatureDefence(
        settings.feature_clip_norm,
        settings.feature_noise,
        settings.nopeek,
        source or SecretNoise(),
    )


def device_defence(context: Context, source: SecretNoise) -> FeatureDefence:
    """Return a device's defence: its node config wins over the run-config."""
    return defence_of({**context.run_config, **context.node_config}, source)


def defend(model: nn.Module, defence: FeatureDefence) -> None:
    """Let a device half's features go through a defence, in each forward pass.

    Where there is noise, and batch normalisation that trains, it logs a warning: noise
    then guarantees less than `feature_epsilon` says.

    Parameters
    ----------
    model : nn.Module
        The device half; of a `HeadAndTail` the head, of a `DecoupledHalf` the half
        itself. Its state dict stays as it is.
    defence : FeatureDefence
    """

    def hook(module: nn.Module, inputs: Any, features: Structure) -> Structure:
        return defence(inputs[0], features)

    half = _half(model)
    if defence.noise and any(_goes_by_batch(module) for module in half.modules()):
        _warn_of_batches(type(half).__name__)
    half.register_forward_hook(hook)


def _goes_by_batch(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.training


@cache  # once for each kind of half, and not in each turn
def _warn_of_batches(half: str) -> None:
    logger.warning(
        "%s has batch normalisation: a sample is in the features of its whole batch, "
        "so noise guarantees less than feature_epsilon says. Take GroupNorm or "
        "LayerNorm, or keep the normalisation in eval mode",
        half,
    )


def clip(model: nn.Module, defence: FeatureDefence) -> None:
    """Let a device half's features be clipped alone, as where none of them are sent."""

    def hook(module: nn.Module, inputs: Any, features: Structure) -> Structure:
        return defence.clipped(features)

    _half(model).register_forward_hook(hook)


def _half(model: nn.Module) -> nn.Module:
    if isinstance(model, DecoupledHalf):
        return _half(model.device)
    return model.head if isinstance(model, HeadAndTail) else model
