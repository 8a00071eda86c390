"""Releases: the features of samples as the server gets them.

What leaves a device is the output of its half, coded and decoded again, batch by batch
as in training: a codec looks at a whole batch.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flwr_splitfc.codec import CutCodec, Link
from flwr_splitfc.codec.quality import labels_per_row
from flwr_splitfc.exchange.protocol.parts import coded_tensors
from flwr_splitfc.model.structures import Structure, float_tensors, is_float, rows_of

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
    own : Tensor of shape (N, ...), optional
        The features as they left the half, before the codec, where that left entries
        out. An attacker has only those of samples that it knows: it has the half.
    sent : Tensor of shape (N, D), optional
        Which entries of the features were sent, bool; default: all.
    part : str
        Which tensor the inputs are, where a sample has several: a key or a number.
    """

    features: Tensor
    inputs: Tensor
    labels: Tensor
    bits_per_entry: float
    batch: Tensor | None = None
    own: Tensor | None = None
    sent: Tensor | None = None
    part: str = ""

    def rows(self, start: int, end: int) -> "Releases":
        """Return the releases of some of the samples."""
        part: dict[str, Any] = {}
        for column in fields(self):
            value = getattr(self, column.name)
            if isinstance(value, Tensor):
                part[column.name] = value[start:end]
        return replace(self, **part)

    @property
    def batch_sizes(self) -> list[int]:
        """How many samples each batch has, in order."""
        if self.batch is None:
            return [1] * len(self.features)
        _, counts = self.batch.unique_consecutive(return_counts=True)
        sizes: list[int] = counts.tolist()
        return sizes


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
    become one vector a sample. Of inputs of several tensors the first of floating-point
    numbers counts, or the first of all: `Releases.part` says which.

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
    parts: list[tuple[Tensor, ...]] = []
    part = ""
    count = 0
    for inputs, labels in batches:
        if count >= samples:
            break
        # a device that has the loss tells the codec nothing of labels, either
        labels_of_row = None if all_rows else labels_per_row(labels)
        arrived = sender.send(device_half(inputs), labels_of_row)
        part, attacked = _attacked_part(inputs)
        rows, row_labels = (arrived.link.sent_rows(each) for each in (attacked, labels))
        batch = torch.full((len(rows),), len(parts))
        own, sent = arrived.own, arrived.sent
        parts.append((arrived.features, rows, row_labels, batch, own, sent))
        count += len(rows)
    if not parts:
        raise ValueError("there is no batch of samples to look at")
    try:
        columns = [torch.cat(column)[:samples] for column in zip(*parts, strict=True)]
    except RuntimeError as error:
        raise ValueError(f"samples differ in shape: {error}") from error
    features, inputs, labels, batch, own, sent = columns
    bits = 8 * sender.payload_bytes / sender.entries
    if sent.all():
        return Releases(features, inputs, labels, bits, batch, part=part)
    return Releases(features, inputs, labels, bits, batch, own, sent, part)


def _attacked_part(inputs: Structure) -> tuple[str, Tensor]:
    """Return the tensor that is attacked, and its name if there are several."""
    tensors = list(_named_tensors(inputs, ""))
    numbers = [named for named in tensors if is_float(named[1])]
    name, tensor = (numbers or tensors)[0]
    return (name if len(tensors) > 1 else ""), tensor


def _named_tensors(structure: Structure, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(structure, Tensor):
        yield name, structure
        return
    parts: Iterable[tuple[object, Structure]] = ()
    if isinstance(structure, Mapping):
        parts = structure.items()
    elif isinstance(structure, tuple | list):
        parts = enumerate(structure)
    for key, part in parts:
        yield from _named_tensors(part, f"{name}.{key}" if name else str(key))


class _Arrived(NamedTuple):
    """What arrives of a batch: features (b, ...), and which entries (b, D) were sent.

    The link says which rows. `own` are the same rows before the codec.
    """

    features: Tensor
    own: Tensor
    sent: Tensor
    link: Link

    @property
    def columns(self) -> tuple[Tensor, Tensor, Tensor]:
        """What has a row for each sample, (b, D)."""
        return self.features.flatten(1), self.own.flatten(1), self.sent


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

    def send(self, features: Structure, labels_per_row: float | None) -> _Arrived:
        """Return what arrives of features, (B, ...)."""
        self._full_rows = max(self._full_rows, rows_of(features))
        if isinstance(features, Tensor):
            return self._send(features, labels_per_row, self._all_rows)
        coded = coded_tensors(features)
        # rows are left out of all tensors or of none
        arrived = [
            self._send(tensor, labels_per_row, all_rows=True)
            if any(tensor is one for one in coded)
            else _exactly(tensor)
            for tensor in float_tensors(features)
        ]
        columns = zip(*(each.columns for each in arrived), strict=True)
        features, own, sent = (torch.cat(each, dim=1) for each in columns)
        return _Arrived(features, own, sent, arrived[-1].link)

    def _send(
        self, features: Tensor, labels_per_row: float | None, all_rows: bool
    ) -> _Arrived:
        array, _ = self._codec.encode_features(
            features,
            generator=self._generator,
            full_rows=self._full_rows,
            all_rows=all_rows,
            labels_per_row=labels_per_row,
        )
        rows = len(features)
        decoded, link = self._codec.decode_features(
            array, expect=(rows, features[0].numel())
        )
        self.payload_bytes += len(array.data)
        self.entries += features.numel()
        seen = link.sent_rows(decoded)
        sent = link.sent_rows(link.expand(torch.ones(link.sent, link.kept))) > 0
        own = link.sent_rows(features.float())
        return _Arrived(seen.reshape(own.shape), own, sent, link)


def _exactly(tensor: Tensor) -> _Arrived:
    """Return what arrives of whole numbers beside the features."""
    own = tensor.float()
    matrix = own.flatten(1)
    sent = torch.ones_like(matrix, dtype=torch.bool)
    return _Arrived(own, own, sent, Link(*matrix.shape))
