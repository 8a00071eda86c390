"""Checks of a trainer's settings, before it is made: each raises a `ValueError`."""

from numbers import Real

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.parameter import is_lazy
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from flwr_splitfc.model import LossFn


def check_steps(accumulate_steps: int, max_grad_norm: float | None) -> None:
    """Refuse counts and norms that are not positive."""
    if accumulate_steps < 1:
        raise ValueError(f"accumulate_steps is {accumulate_steps}, wanted 1 or more")
    if max_grad_norm is None:
        return
    if not isinstance(max_grad_norm, Real) or not max_grad_norm > 0:
        raise ValueError(
            f"max_grad_norm is {max_grad_norm!r:.100}, wanted a positive number"
        )


def check_shapes(model: nn.Module) -> None:
    """Refuse a model whose weights have no shape yet."""
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise ValueError(
                f"{name} of the server half has no shape yet, and the first device "
                "would decide it: run a batch through the model before"
            )


def check_loss_fn(loss_fn: LossFn | None) -> None:
    """Refuse a loss with weights of its own, which nothing would train."""
    if not isinstance(loss_fn, nn.Module):
        return
    trained = [name for name, p in loss_fn.named_parameters() if p.requires_grad]
    if trained:
        raise ValueError(
            f"loss_fn has the parameter {trained[0]!r}, and only the server half is "
            "trained: make it part of server_model, or freeze it"
        )


def check_trained(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Refuse an optimizer of other weights than the model's, or one with a closure."""
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError(
            "LBFGS computes the loss of a mini-batch several times in a step, and a "
            "step of the server half is one pass: use another optimizer"
        )
    own = set(model.parameters())
    for group in optimizer.param_groups:
        if not own.issuperset(group["params"]):
            raise ValueError(
                "the optimizer has parameters that are not of the model which it is "
                "for: make it of the parameters that it is given, as each copy of "
                "the server half has its own"
            )


def check_scheduler(scheduler: LRScheduler | None) -> None:
    """Refuse a scheduler that wants more than to be told of a step."""
    if isinstance(scheduler, ReduceLROnPlateau):
        raise ValueError(
            "ReduceLROnPlateau needs a metric in each step, which the server half "
            "does not have: use a scheduler that goes by steps"
        )


def check_merging(
    merge_steps: int, model: nn.Module, loss_fn: LossFn | None, accumulate_steps: int
) -> None:
    """Refuse merged steps where batches would not stay apart, or have no loss."""
    if merge_steps < 1:
        raise ValueError(f"merge_steps is {merge_steps}, wanted 1 or more")
    if merge_steps == 1:
        return
    if loss_fn is None:
        raise ValueError(
            f"merge_steps is {merge_steps}, and the loss is the devices': "
            "their steps have two halves, which are not merged"
        )
    if accumulate_steps > 1:
        raise ValueError(
            f"merge_steps is {merge_steps} and accumulate_steps {accumulate_steps}: "
            "both average the gradients of mini-batches; give one"
        )
    if any(_mixes_rows(module) for module in model.modules()):
        raise ValueError(
            f"merge_steps is {merge_steps}, and the server half has batch "
            "normalisation or running statistics: each device's rows would change "
            "the others' outputs"
        )


def _mixes_rows(module: nn.Module) -> bool:
    if isinstance(module, _BatchNorm):
        return True
    return isinstance(module, _NormBase) and module.track_running_stats


def check_replay(
    replay_steps: int, loss_fn: LossFn | None, accumulate_steps: int, merge_steps: int
) -> None:
    """Refuse a replay where the server has no labels, or steps of several batches."""
    if replay_steps < 0:
        raise ValueError(f"replay_steps is {replay_steps}, wanted 0 or more")
    if replay_steps == 0:
        return
    if loss_fn is None:
        raise ValueError(
            f"replay_steps is {replay_steps}, and the loss is the devices': "
            "the server has no labels to train on once more"
        )
    if accumulate_steps > 1 or merge_steps > 1:
        raise ValueError(
            f"replay_steps is {replay_steps}, accumulate_steps {accumulate_steps} and "
            f"merge_steps {merge_steps}: steps of several mini-batches are not replayed"
        )
