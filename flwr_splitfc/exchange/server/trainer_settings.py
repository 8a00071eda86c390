"""Checks of a trainer's settings, before it is made: each raises a `ValueError`."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from flwr_splitfc.model import LossFn


def check_steps(accumulate_steps: int, max_grad_norm: float | None) -> None:
    """Refuse counts and norms that are not positive."""
    if accumulate_steps < 1:
        raise ValueError(f"accumulate_steps is {accumulate_steps}, wanted 1 or more")
    if max_grad_norm is not None and not max_grad_norm > 0:
        raise ValueError(f"max_grad_norm is {max_grad_norm}, wanted a positive number")


def check_shapes(model: nn.Module) -> None:
    """Refuse a model whose weights have no shape yet."""
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise ValueError(
                f"{name} of the server half has no shape yet, and the first device "
                "would decide it: run a batch through the model before"
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
    if any(isinstance(module, _BatchNorm) for module in model.modules()):
        raise ValueError(
            f"merge_steps is {merge_steps}, and the server half has batch "
            "normalisation: each device's rows would change the others' outputs"
        )


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
