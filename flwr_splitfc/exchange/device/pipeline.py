"""Mini-batches under way at once, each with the weights of its forward pass."""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from flwr_splitfc.exchange.device.autograd import (
    answered_loss,
    check_grad_mode,
    loss_of_no_rows,
)
from flwr_splitfc.exchange.device.backward_watch import BackwardWatch
from flwr_splitfc.exchange.device.batch_checks import check_features, check_labels
from flwr_splitfc.exchange.device.steps import SentStep, Steps
from flwr_splitfc.model.stand_ins import call_with
from flwr_splitfc.model.structures import Structure, plain_tensors, rows_of

LabelledBatches: TypeAlias = Iterable[tuple[Structure, Tensor]]
"""Batches of inputs (B, ...), or structures of such tensors, and labels (B, ...)."""

_CALL = "server.pipelined"


class _UnderWay(NamedTuple):
    """A mini-batch that was sent, with its features' graph; an empty one is not."""

    features: Structure
    step: SentStep | None


def pipelined_losses(
    steps: Steps,
    model: nn.Module,
    batches: LabelledBatches,
    depth: int,
    watch: BackwardWatch,
) -> Iterator[Tensor]:
    """Yield the losses of batches in their order, with `depth` of them under way.

    See `Session.pipelined`.
    """
    under_way: deque[_UnderWay] = deque()

    def next_loss() -> Tensor:
        features, step = under_way.popleft()
        if step is None:
            return loss_of_no_rows(features, watch)
        loss, gradients = steps.end(step)
        return answered_loss(features, loss, gradients, watch)

    try:
        for x, y in batches:
            features = model(x) if depth == 1 else _on_kept_weights(model, x)
            check_features(_CALL, features)
            check_labels(_CALL, y)
            check_grad_mode()
            features, y = plain_tensors(features), plain_tensors(y)
            step = steps.begin(features, y.detach()) if rows_of(features) else None
            under_way.append(_UnderWay(features, step))
            if len(under_way) == depth:
                yield next_loss()
        while under_way:
            yield next_loss()
    except GeneratorExit:
        # the loop was left: what the server half has trained on counts
        if steps.line.is_open:
            for _, step in under_way:
                if step is not None:
                    steps.end(step)
        raise


def _on_kept_weights(model: nn.Module, x: Structure) -> Structure:
    """Return the features of a forward pass whose backward pass may come later.

    The optimizer changes weights in place, and a backward pass needs those of its
    forward pass: it goes through copies, and on to the weights themselves. What it
    writes into a copy, as an embedding with ``max_norm`` does, or puts in its place by
    ``weight.data = ...``, is written into the weight, too.
    """
    weights = dict(model.named_parameters())
    copies = {
        name: weight.clone() for name, weight in weights.items() if weight.requires_grad
    }
    # they keep the copies' memory, so that nothing new is put at its address
    as_made = {name: copy.detach() for name, copy in copies.items()}
    features = call_with(model, dict(copies), x)
    with torch.no_grad():
        for name, copy in copies.items():
            was_moved = copy.data_ptr() != as_made[name].data_ptr()
            # a fresh copy is of version 0
            if copy._version > 0 or was_moved:
                weights[name].copy_(copy)
    return features
