"""Whether the gradient of a run asks its devices to level features.

A device sends small channels as precisely as large ones once a gradient has told that
they matter as much (see `codec.levels`), to the end of its turn or of the run. So
what an attacker gets of them depends on the server half and on the loss.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from flwr_splitfc.codec import CutCodec
from flwr_splitfc.leakage.arrivals import Arrival
from flwr_splitfc.model.structures import Structure, float_tensors, is_float, mapped

FeatureLoss = Callable[[Structure, Tensor], Tensor]
"""Gives the loss, a scalar, of features (B, ...) and labels (B, ...)."""


class Levels(NamedTuple):
    """What `levelled` of `released` is in a run, and why that is not known.

    Both are tried where it is not.
    """

    tried: list[bool | None]
    not_known: str = ""


def asks_for_levels(arrival: Arrival, codec: CutCodec, loss: FeatureLoss) -> bool:
    """Tell whether a device levels the features after this batch, as it would ask."""

    def leaf_of(leaf: Structure) -> Structure:
        return leaf.clone().requires_grad_() if is_float(leaf) else leaf

    features = mapped(arrival.features, leaf_of)
    with torch.enable_grad():
        loss(features, arrival.labels).backward()
    for tensor, leaf in zip(arrival.tensors, float_tensors(features), strict=True):
        # none is of a tensor that the server half does not look at
        if leaf.grad is None or tensor.payload_bytes is None:
            continue
        link = tensor.link
        gradient = link.all_rows(leaf.grad).flatten(1)
        array = codec.encode_gradient(
            gradient,
            link,
            full_rows=arrival.full_rows,
            labels_per_row=arrival.labels_per_row,
        )
        seen = codec.decode_gradient(array, link)
        if codec.needs_levels(tensor.exact, seen, link):
            return True
    return False
