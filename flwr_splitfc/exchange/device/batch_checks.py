"""Checks of what a training loop gives to a session, before anything is sent."""

import torch
from torch import Tensor

_WANTED = "wanted one floating point Tensor of shape (B, ...), the device half's output"


def check_features(call: str, features: object) -> None:
    """Refuse features that cannot go up.

    Parameters
    ----------
    call : str
        What was called, for the message.
    features : object

    Raises
    ------
    TypeError, ValueError
        The message says what came, what was wanted, and what to do.
    """
    if not isinstance(features, Tensor):
        advice = ": let the device half return one, such as torch.cat of several"
        raise TypeError(f"{call} got {_described(features)}, {_WANTED}{advice}")
    if not features.is_floating_point():
        raise ValueError(
            f"{call} got features of {features.dtype}, {_WANTED}: features come first, "
            "labels second; token ids have to go through the embedding first"
        )
    if features.ndim < 2:
        shape = tuple(features.shape)
        raise ValueError(
            f"{call} got features of shape {shape}, {_WANTED}: a row for each sample. "
            "A number for each sample is features.unsqueeze(1)"
        )
    if features.layout is not torch.strided:
        raise ValueError(
            f"{call} got features of layout {features.layout}, {_WANTED}: give it "
            "features.to_dense()"
        )


def check_labels(call: str, labels: object) -> None:
    """Refuse labels that cannot go up, as `check_features` does.

    Raises
    ------
    TypeError, ValueError
    """
    wanted = "wanted a Tensor of shape (B, ...), with a row for each sample"
    if not isinstance(labels, Tensor):
        raise TypeError(
            f"{call} got {_described(labels)} as labels, {wanted}: "
            "torch.as_tensor(labels)"
        )
    # the server counts the rows, of whatever comes
    if labels.ndim == 0:
        raise ValueError(f"{call} got labels of shape (), {wanted}")


def _described(value: object) -> str:
    name = type(value).__name__
    if isinstance(value, tuple | list | dict):
        return f"{name} of {len(value)}"
    return name
