"""Releases: the features of samples as the server gets them.

What leaves a device is the output of its half, coded and decoded again, batch by batch
as in training: a codec looks at a whole batch.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from flwr_splitfc.codec import CutCodec

DeviceHalf = Callable[[Tensor], Tensor]
"""Gives features (B, ...) for inputs (B, ...): a device half, with its defences."""


@dataclass(frozen=True, eq=False)
class Releases:
    """What the server has of some samples, and what it should not have.

    Parameters
    ----------
    features : Tensor of shape (N, ...)
        As decoded by the server.
    inputs : Tensor of shape (N, ...)
    labels : Tensor of shape (N, ...)
    bits_per_entry : float
        Bits of all payloads over entries of all features.
    """

    features: Tensor
    inputs: Tensor
    labels: Tensor
    bits_per_entry: float


@torch.no_grad()
def released(
    device_half: DeviceHalf,
    codec: CutCodec,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    samples: int,
    generator: torch.Generator | None = None,
    all_rows: bool = False,
) -> Releases:
    """Return what the server gets of the first `samples` samples of some batches.

    Rows that the codec does not send are not among them.

    Parameters
    ----------
    device_half : callable
    codec : CutCodec
    batches : iterable of (Tensor, Tensor)
        Inputs (B, ...) and labels (B, ...).
    samples : int
        At most so many; fewer where the batches have no more.
    generator : torch.Generator, optional
        Of what is random in the codec; default torch's own.
    all_rows : bool (default: False)
        Whether every sample is sent, as where devices have the loss.

    Raises
    ------
    ValueError
        If there is no batch, or the codec cannot code one.
    """
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    seen_samples = 0
    payload_bytes = 0
    entries = 0
    full_rows = 0
    for inputs, labels in batches:
        if seen_samples >= samples:
            break
        features = device_half(inputs)
        full_rows = max(full_rows, len(features))
        array, _ = codec.encode_features(
            features, generator=generator, full_rows=full_rows, all_rows=all_rows
        )
        columns = features[0].numel()
        decoded, link = codec.decode_features(array, expect=(len(features), columns))
        seen = link.sent_rows(decoded)
        shape = (len(seen), *features.shape[1:])
        parts.append(
            (seen.reshape(shape), link.sent_rows(inputs), link.sent_rows(labels))
        )
        seen_samples += len(seen)
        payload_bytes += len(array.data)
        entries += features.numel()
    if not parts:
        raise ValueError("there is no batch of samples to look at")
    all_features, all_inputs, all_labels = (
        torch.cat(column)[:samples] for column in zip(*parts, strict=True)
    )
    bits = 8 * payload_bytes / entries
    return Releases(all_features, all_inputs, all_labels, bits)
