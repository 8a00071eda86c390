"""Where the defence of a run's features stands: behind the device half."""

from functools import cache
from logging import getLogger
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from flwr_splitfc.defence import FeatureDefence
from flwr_splitfc.model import DecoupledHalf, HeadAndTail
from flwr_splitfc.model.structures import Structure

logger = getLogger("flwr")


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
