"""Checks of what a training loop gives to a session, before anything is sent."""

from collections.abc import Mapping
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from flwr_splitfc.exchange.protocol.parts import MOST_DEPTH, MOST_PARTS
from flwr_splitfc.model.structures import (
    Structure,
    float_tensors,
    leaves_of,
    rows_of,
    shapes_of,
)

_WANTED = "wanted floating point features of shape (B, ...), the device half's output"
_STRUCTURES = "a Tensor, or a tuple, list or dict of them"
_MOST_LABEL_ENTRIES = 2**63  # no tensor has as many


def check_features(call: str, features: Structure) -> None:
    """Refuse features that cannot go up.

    Parameters
    ----------
    call : str
        What was called, for the message.
    features : structure of Tensor

    Raises
    ------
    TypeError, ValueError
        The message says what came, what was wanted, and what to do.
    """
    _check_size(call, features)
    leaves = leaves_of(features)
    for leaf in leaves:
        _check_tensor(call, leaf)
    there = [leaf for leaf in leaves if leaf.is_floating_point()]
    if not there:
        kinds = [leaf.dtype for leaf in leaves]
        raise ValueError(
            f"{call} got features of {', '.join(map(str, kinds)) or 'no tensor'}, "
            f"{_WANTED}: features come first, labels second; token ids have to go "
            "through the embedding first"
        )
    for tensor in there:
        _check_features(call, tensor)
    rows = there[0].shape[0]
    if any(tensor.shape[0] != rows for tensor in there):
        raise ValueError(
            f"{call} got features of shapes {shapes_of(features)}, wanted as many rows "
            f"in each floating point tensor, one for each sample. The states of a "
            "recurrent layer have them second: state.transpose(0, 1)"
        )


def _check_size(call: str, features: Structure) -> None:
    """Refuse structures that the server would."""
    parts = _count_parts(call, features, MOST_DEPTH)
    if parts > MOST_PARTS:
        raise ValueError(
            f"{call} got features of {parts} parts, at most {MOST_PARTS} may be"
        )


def _count_parts(call: str, features: Structure, depth_left: int) -> int:
    if isinstance(features, Tensor):
        return 1
    if isinstance(features, Mapping):
        for key in features:
            if not isinstance(key, str):
                raise TypeError(f"{call} got a dict with the key {key!r}, wanted a str")
        features = list(features.values())
    if type(features) not in (tuple, list):
        return 1
    if depth_left == 0:
        raise ValueError(f"{call} got features more than {MOST_DEPTH} deep")
    return 1 + sum(_count_parts(call, part, depth_left - 1) for part in features)


def _check_tensor(call: str, leaf: Any) -> None:
    if not isinstance(leaf, Tensor):
        advice = ""
        if isinstance(leaf, PackedSequence):
            advice = (
                ": pad_packed_sequence(features, batch_first=True) gives the tensor "
                "and the lengths, and both may go"
            )
        elif isinstance(leaf, tuple):
            advice = ", as the names of its fields would be lost: tuple(features)"
        raise TypeError(f"{call} got {_described(leaf)}, wanted {_STRUCTURES}{advice}")
    if leaf.layout is not torch.strided:
        raise ValueError(
            f"{call} got features of layout {leaf.layout}, {_WANTED}: give it "
            "features.to_dense()"
        )
    if leaf.is_complex():
        raise ValueError(
            f"{call} got features of {leaf.dtype}, {_WANTED}: give it "
            "torch.view_as_real(features)"
        )


def _check_features(call: str, features: Tensor) -> None:
    if features.ndim < 2:
        shape = tuple(features.shape)
        raise ValueError(
            f"{call} got features of shape {shape}, {_WANTED}: a row for each sample. "
            "A number for each sample is features.unsqueeze(1)"
        )


def check_rows(call: str, features: Structure) -> None:
    """Refuse an empty batch where an output is wanted: no device knows its shape.

    Raises
    ------
    ValueError
    """
    if rows_of(features) == 0:
        raise ValueError(
            f"{call} got features of shape {shapes_of(features)}, wanted a row or "
            "more: what shape the output of none would have, only the server half "
            "knows. Skip the batch, as by: if len(x) == 0: continue"
        )


def check_numbers(features: Structure) -> None:
    """Refuse features that hold NaN or infinity, which no codec takes.

    It reads all of them, so it is for those that a codec has refused.

    Raises
    ------
    ValueError
    """
    tensors = float_tensors(features)
    for number, tensor in enumerate(tensors, start=1):
        if tensor.isfinite().all():
            continue
        place = f" (tensor {number} of {len(tensors)})" if len(tensors) > 1 else ""
        raise ValueError(
            f"the features{place} of shape {tuple(tensor.shape)} hold NaN or inf; all "
            "values must be finite. Where these mark what is missing, send zeros and "
            'the mask beside: {"features": features.masked_fill(mask, 0), "mask": mask}'
            ". If the half divides by a table of its own, send models as they are: "
            "model_bits=32"
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


def check_label_entries(call: str, entries: object) -> None:
    """Refuse what is no number of entries of a mini-batch's labels.

    Raises
    ------
    TypeError, ValueError
    """
    wanted = "wanted how many entries the labels have: label_entries=labels.numel()"
    if not isinstance(entries, Integral):
        raise TypeError(f"{call} got {_described(entries)} as label_entries, {wanted}")
    if not 0 <= int(entries) < _MOST_LABEL_ENTRIES:
        raise ValueError(f"{call} got label_entries={entries}, {wanted}")


def check_optimizer(optimizer: object, *, decoupled: bool) -> None:
    """Refuse an optimizer before a turn of work that would be lost, or of no use.

    Parameters
    ----------
    optimizer : object
    decoupled : bool
        Whether the device half learns from a loss of its own.

    Raises
    ------
    TypeError
        It is none.
    ValueError
        Its steps ask for the server half's loss several times.
    """
    # not by its class: what wraps an optimizer may have another
    if not hasattr(optimizer, "param_groups"):
        raise TypeError(
            f"the session got {_described(optimizer)} as optimizer, wanted one "
            "torch.optim.Optimizer: in place of two, make one with two groups of "
            "parameters, or give the session none and the strategy "
            "optimizer_state='fresh'"
        )
    if isinstance(optimizer, torch.optim.LBFGS) and not decoupled:
        raise ValueError(
            "LBFGS computes the loss of a mini-batch several times in a step, and the "
            "server half trains each time: use another optimizer for the device half"
        )


def _described(value: object) -> str:
    name = type(value).__name__
    if isinstance(value, tuple | list | dict):
        return f"{name} of {len(value)}"
    return name
