"""Releases: the features of samples as the server gets them.

What leaves a device is the output of its half, coded and decoded again, batch by batch
as in training: a codec looks at a whole batch.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from flwr_splitfc.codec import CutCodec, Link
from flwr_splitfc.model.structures import Structure, float_tensors, leaves_of, rows_of

DeviceHalf = Callable[[Structure], Structure]
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
    batch : Tensor of shape (N,), optional
        The number of the batch that each sample was sent in, rising; default: each was
        sent alone.
    """

    features: Tensor
    inputs: Tensor
    labels: Tensor
    bits_per_entry: float
    batch: Tensor | None = None


@torch.no_grad()
def released(
    device_half: DeviceHalf,
    codec: CutCodec,
    batches: Iterable[tuple[Structure, Tensor]],
    *,
    samples: int,
    generator: torch.Generator | None = None,
    all_rows: bool = False,
) -> Releases:
    """Return what the server gets of the first `samples` samples of some batches.

    Rows that the codec does not send are not among them. Features of several tensors
    become one vector a sample. Of inputs of several tensors the first counts.

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
        If there is no batch, the codec cannot code one, or samples differ in shape.
    """
    sender = _Sender(codec, generator, all_rows)
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    count = 0
    for inputs, labels in batches:
        if count >= samples:
            break
        features, link = sender.send(device_half(inputs))
        rows = link.sent_rows(leaves_of(inputs)[0])
        batch = torch.full((len(features),), len(parts))
        parts.append((features, rows, link.sent_rows(labels), batch))
        count += len(features)
    if not parts:
        raise ValueError("there is no batch of samples to look at")
    try:
        columns = [torch.cat(column)[:samples] for column in zip(*parts, strict=True)]
    except RuntimeError as error:
        raise ValueError(f"samples differ in shape: {error}") from error
    features, inputs, labels, batch = columns
    bits = 8 * sender.payload_bytes / sender.entries
    return Releases(features, inputs, labels, bits, batch)


class _Sender:
    """Codes features and decodes them again."""

    def __init__(
        self, codec: CutCodec, generator: torch.Generator | None, all_rows: bool
    ) -> None:
        self._codec = codec
        self._generator = generator
        self._all_rows = all_rows
        self._full_rows = 0
        self.payload_bytes = 0
        self.entries = 0

    def send(self, features: Structure) -> tuple[Tensor, Link]:
        """Return the rows that arrive of features, (b, ...), and which they are."""
        self._full_rows = max(self._full_rows, rows_of(features))
        if isinstance(features, Tensor):
            return self._send(features, self._all_rows)
        tensors = []
        for tensor in float_tensors(features):
            # rows are left out of all tensors or of none
            seen, link = self._send(tensor, all_rows=True)
            tensors.append(seen.flatten(1))
        return torch.cat(tensors, dim=1), link

    def _send(self, features: Tensor, all_rows: bool) -> tuple[Tensor, Link]:
        array, _ = self._codec.encode_features(
            features,
            generator=self._generator,
            full_rows=self._full_rows,
            all_rows=all_rows,
        )
        rows = len(features)
        decoded, link = self._codec.decode_features(
            array, expect=(rows, features[0].numel())
        )
        self.payload_bytes += len(array.data)
        self.entries += features.numel()
        seen = link.sent_rows(decoded)
        return seen.reshape(len(seen), *features.shape[1:]), link
