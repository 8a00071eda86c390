"""Checks of a training step, made before it is applied."""

from collections.abc import Sequence
from math import hypot, isfinite, isnan

import torch
from torch import Tensor, nn

from flwr_splitfc.exchange.protocol.split_errors import LabelsRefused, StepRefused
from flwr_splitfc.model import LossFn
from flwr_splitfc.model.structures import Structure, float_tensors, leaves_of
from flwr_splitfc.model.torch_losses import (
    broadcasts,
    ignored_label,
    least_margin_label,
    takes_class_indices,
    takes_probabilities,
)

MOST_NORM = 1e18
"""An optimizer squares it in float32, which ends at 3.4e38."""

MOST_NEXT_NORM = 1e12
"""The same with room for features of up to 1,000, which may come into it twice."""

_CHECKED_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_labels(loss_fn: LossFn, outputs: Tensor, labels: Tensor) -> None:
    """Refuse labels that torch's losses take but should not.

    Some end the process on CUDA, where on a CPU they raise an error.

    Parameters
    ----------
    loss_fn : callable
        Losses that are not torch's own take what they take.
    outputs : Tensor of shape (B, ...)
        Of the server half.
    labels : Tensor of shape (B, ...)

    Raises
    ------
    LabelsRefused
    """
    if takes_class_indices(loss_fn) and not labels.is_floating_point():
        _check_class_indices(loss_fn, outputs, labels)
    if broadcasts(loss_fn):
        _check_same_shape(outputs, labels)
    if takes_probabilities(loss_fn):
        _check_range("label", labels, 0, 1)
        _check_range("output of the server half", outputs, 0, 1)
    least = least_margin_label(loss_fn)
    if least is not None:
        _check_range("label", labels, least, outputs.shape[-1] - 1)


def _check_range(what: str, numbers: Tensor, least: int, greatest: int) -> None:
    # NaN is in no range
    wrong = numbers[~((numbers >= least) & (numbers <= greatest))]
    if len(wrong):
        raise LabelsRefused(
            f"{what} {wrong[0].item()} is out of range: "
            f"the loss takes {least} to {greatest}"
        )


def _check_class_indices(loss_fn: LossFn, outputs: Tensor, labels: Tensor) -> None:
    if outputs.ndim < 2 or not labels.numel():
        return
    classes = outputs.shape[1]
    least, greatest = labels.aminmax()
    if least.item() >= 0 and greatest.item() < classes:
        return
    counted = labels != ignored_label(loss_fn)
    out_of_range = (labels < 0) | (labels >= classes)
    wrong = labels[counted & out_of_range]
    if len(wrong):
        raise LabelsRefused(
            f"label {int(wrong[0])} is out of range: "
            f"the server half has {classes} classes"
        )


def _check_same_shape(outputs: Tensor, labels: Tensor) -> None:
    # Labels (B,) with outputs (B, 1) would give B x B differences, and no error;
    # labels (B, 1, N) would give B x B x N, of which N may be millions.
    if labels.shape != outputs.shape:
        raise LabelsRefused(
            f"labels have shape {tuple(labels.shape)}, "
            f"the outputs {tuple(outputs.shape)}"
        )


def check_loss(loss: object, loss_fn: LossFn, labels: Tensor) -> None:
    """Refuse a loss that is not one number with a graph, and finite.

    Where no label counts, torch's mean over them is NaN with a gradient of zero, which
    is taken.

    Parameters
    ----------
    loss : object
        What `loss_fn` gave.
    loss_fn : callable
    labels : Tensor of shape (B, ...)

    Raises
    ------
    StepRefused
    """
    if not isinstance(loss, Tensor):
        raise StepRefused(
            f"loss_fn gave a {type(loss).__name__}, wanted a scalar tensor"
        )
    if loss.ndim:
        raise StepRefused(
            f"the loss has shape {tuple(loss.shape)}, wanted a scalar: "
            "use a reduction in loss_fn"
        )
    value = loss.item()
    is_empty_mean = isnan(value) and _all_ignored(loss_fn, labels)
    if not (isfinite(value) or is_empty_mean):
        raise StepRefused(f"the loss is not finite: {value}")
    if not loss.requires_grad:
        raise StepRefused(
            "loss_fn gave a loss without a graph, so nothing can learn from it: "
            "argmax, .detach(), torch.no_grad() and the like lose it, and so do "
            "checkpoints with use_reentrant=True in both halves"
        )


def _all_ignored(loss_fn: LossFn, labels: Tensor) -> bool:
    if labels.is_floating_point():
        return False
    return bool((labels == ignored_label(loss_fn)).all())


def check_output(output: object, rows: int) -> None:
    """Refuse an output of the server half that cannot go to a device and back.

    Raises
    ------
    StepRefused
    """
    wanted = f"wanted ({rows}, ...) with a gradient"
    if not isinstance(output, Tensor):
        kind = type(output).__name__
        raise StepRefused(f"the server half's output has type {kind}, {wanted}")
    has_rows = output.ndim >= 2 and len(output) == rows
    if not has_rows or not output.requires_grad:
        shape = tuple(output.shape)
        raise StepRefused(f"the server half's output has shape {shape}, {wanted}")
    check_finite("the server half's output", [output.detach()])


def check_prediction(output: object) -> None:
    """Refuse an output of the server half that is no structure of tensors.

    Raises
    ------
    StepRefused
    """
    for leaf in leaves_of(output):
        if not isinstance(leaf, Tensor):
            raise StepRefused(
                f"the server half's output has a {type(leaf).__name__}, wanted a "
                "Tensor, or a tuple, list or dict of them"
            )


def check_finite(what: str, parts: Sequence[Tensor | None]) -> None:
    """Refuse a step whose numbers have run away.

    Parameters
    ----------
    what : str
        What the numbers are, for the message.
    parts : sequence of Tensor
        Their norm together is limited. None is the gradient by what a result does not
        depend on.

    Raises
    ------
    StepRefused
    """
    there = [part for part in parts if part is not None]
    norm = total_norm(there)
    # a norm of NaN is not at most anything
    if not norm <= MOST_NORM:
        raise StepRefused(f"{what} of norm {norm} is not finite, or beyond 1e18")


def total_norm(parts: Sequence[Tensor]) -> float:
    """Return the norm of some tensors together."""
    # a GPU makes one kernel of many; on a CPU, to prepare that takes longer than norms
    if any(part.is_cuda for part in parts):
        return float(nn.utils.get_total_norm(parts))
    return hypot(*(float(torch.linalg.vector_norm(part)) for part in parts))


def finite_buffers(model: nn.Module) -> list[str]:
    """Return the names of the buffers that are finite; a mask need not be."""
    return [
        name
        for name, buffer in model.named_buffers()
        if _has_numbers(buffer) and bool(buffer.isfinite().all())
    ]


def _has_numbers(buffer: Tensor) -> bool:
    if buffer.layout is not torch.strided or buffer.dtype not in _CHECKED_TYPES:
        return False
    return buffer.numel() > 0


def check_buffers(model: nn.Module, names: Sequence[str]) -> None:
    """Refuse a step that leaves infinity or NaN in buffers, such as running means.

    Parameters
    ----------
    model : nn.Module
        After its forward pass.
    names : sequence of str
        The buffers that were finite before.

    Raises
    ------
    StepRefused
    """
    if not names:
        return
    buffers = dict(model.named_buffers())
    # a forward pass may have dropped or emptied one
    there = [buffers[name] for name in names if name in buffers]
    there = [buffer for buffer in there if buffer.numel()]
    # NaN counts as the largest
    largest = nn.utils.get_total_norm(there, torch.inf)
    if not largest.isfinite():
        raise StepRefused("the server half's buffers would not be finite any more")


def next_norm(output: Structure, leaves: Sequence[Tensor]) -> float:
    """Return how large the gradient of a next step may be.

    It is tried with the loss (o^2 + o) / 2, as a mean over the entries o of the output:
    its gradient by the output grows with the output, as that of a squared error does,
    and is not zero where the output is, as that of a saturated softmax. A sum would
    grow with the batch, and refuse honest steps towards large labels, such as prices.

    Parameters
    ----------
    output : structure of Tensor
        Of the half with its new weights, for features of at most 1.
    leaves : sequence of Tensor
        The features and the weights that it depends on.

    Returns
    -------
    float
        Its norm, which is of no use beyond `MOST_NEXT_NORM`.
    """
    losses = [((o.square() + o) / 2).mean() for o in float_tensors(output)]
    loss = torch.stack(losses).sum()
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    return total_norm([gradient for gradient in gradients if gradient is not None])
