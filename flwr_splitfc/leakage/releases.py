"""Releases: the features of samples as the server gets them.

What leaves a device is the output of its half, coded and decoded again, batch by batch
as in training.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flwr_splitfc.codec import CutCodec
from flwr_splitfc.leakage.arrivals import Arrival, DeviceHalf, arrivals
from flwr_splitfc.model.structures import Structure, is_float


class Draws(NamedTuple):
    """What tells the numbers that the half's pass over a batch drew.

    Parameters
    ----------
    state : Tensor
        Of torch's generator before the pass, as `torch.get_rng_state` gives it.
    rows : int
        Of the batch, also of those that were not sent.
    """

    state: Tensor
    rows: int


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
        The features before the codec. An attacker has only those of samples that it
        knows: it has the half, which gives them without the noise of a defence.
    sent : Tensor of shape (N, D), optional
        Which entries of the features were sent, bool; default: all.
    part : str
        Which tensor the inputs are, where a sample has several: a key or a number.
    place : Tensor of shape (N,), optional
        The row of each sample in its batch, where batches have draws.
    draws : dict of int to Draws
        By batch, where its pass drew from torch's generator, as dropout does. An
        attacker knows them, as a server that gives out the seed does.
    """

    features: Tensor
    inputs: Tensor
    labels: Tensor
    bits_per_entry: float
    batch: Tensor | None = None
    own: Tensor | None = None
    sent: Tensor | None = None
    part: str = ""
    place: Tensor | None = None
    draws: Mapping[int, Draws] = field(default_factory=dict)

    def rows(self, start: int, end: int) -> "Releases":
        """Return the releases of some of the samples."""
        return self.select(slice(start, end))

    def select(self, rows: Tensor | slice) -> "Releases":
        """Return the releases of the samples in these places."""
        part: dict[str, Any] = {}
        for column in fields(self):
            value = getattr(self, column.name)
            if isinstance(value, Tensor):
                part[column.name] = value[rows]
        return replace(self, **part)

    def split(self, sizes: Sequence[int]) -> list["Releases"]:
        """Return the releases in parts of so many samples."""
        parts = []
        start = 0
        for size in sizes:
            end = start + size
            parts.append(self.rows(start, end))
            start = end
        return parts

    @property
    def drawn(self) -> Draws | None:
        """The draws of the first sample's batch."""
        if self.batch is None:
            return None
        return self.draws.get(int(self.batch[0]))

    @property
    def batch_sizes(self) -> list[int]:
        """How many samples each batch has, in order."""
        if self.batch is None:
            return [1] * len(self.features)
        _, counts = self.batch.unique_consecutive(return_counts=True)
        sizes: list[int] = counts.tolist()
        return sizes


def released(
    device_half: DeviceHalf,
    codec: CutCodec,
    batches: Iterable[tuple[Structure, Tensor]],
    *,
    samples: int,
    generator: torch.Generator | None = None,
    all_rows: bool = False,
    levelled: bool | None = None,
) -> Releases:
    """Return what the server gets of the first `samples` samples of some batches.

    Rows that the codec does not send are not among them. Features of several tensors
    become one vector a sample. Of inputs of several tensors the first of floating-point
    numbers counts, or the first of all: `Releases.part` says which.

    Parameters
    ----------
    device_half : callable
        Whole numbers without a graph, beside other features, arrive exactly.
    codec : CutCodec
    batches : iterable of (Tensor, Tensor)
        Inputs (B, ...) and labels (B, ...).
    samples : int
        At most so many; fewer where the batches have no more.
    generator : torch.Generator, optional
        Of what is random in the codec; default torch's own.
    all_rows : bool (default: False)
        Whether every sample is sent, as where devices have the loss.
    levelled : bool, optional
        Whether small channels are as precise as large ones, as in the steps after a
        gradient has told; default as in the first step of a turn. See
        `CutCodec.encode_features`.

    Raises
    ------
    ValueError
        If there is no batch, the codec cannot code one, or samples differ in shape.
    """
    arrived = list(
        arrivals(
            device_half,
            codec,
            batches,
            samples=samples,
            generator=generator,
            all_rows=all_rows,
            levelled=levelled,
        )
    )
    if not arrived:
        raise ValueError("there is no batch of samples to look at")
    parts = [_columns(arrival, number) for number, arrival in enumerate(arrived)]
    try:
        columns = [torch.cat(column)[:samples] for column in zip(*parts, strict=True)]
    except RuntimeError as error:
        raise ValueError(f"samples differ in shape: {error}") from error
    features, own, sent, inputs, labels, batch, place = columns
    part, _ = _attacked_part(arrived[-1].inputs)
    all_sent = bool(sent.all())
    return Releases(
        features,
        inputs,
        labels,
        _bits_per_entry(arrived),
        batch,
        own=own,
        sent=None if all_sent else sent,
        part=part,
        place=place,
        draws=_draws(arrived),
    )


def _columns(arrival: Arrival, number: int) -> tuple[Tensor, ...]:
    """Return what has a row for each sample: features, own, sent, inputs and so on."""
    features, own, sent = _features(arrival)
    link = arrival.link
    _, attacked = _attacked_part(arrival.inputs)
    inputs = link.sent_rows(attacked)
    batch = torch.full((len(inputs),), number)
    places = torch.arange(link.rows)
    place = link.sent_rows(places)
    return features, own, sent, inputs, arrival.labels, batch, place


def _features(arrival: Arrival) -> tuple[Tensor, Tensor, Tensor]:
    """Return a batch's features as decoded, before the codec, and which were sent.

    Those of several tensors become one vector a sample.
    """
    if isinstance(arrival.features, Tensor):
        [tensor] = arrival.tensors
        return tensor.seen, tensor.own, tensor.sent
    seen = []
    own = []
    sent = []
    for tensor in arrival.tensors:
        seen.append(tensor.seen.flatten(1))
        own.append(tensor.own.flatten(1))
        sent.append(tensor.sent)
    return torch.cat(seen, dim=1), torch.cat(own, dim=1), torch.cat(sent, dim=1)


def _draws(arrived: Iterable[Arrival]) -> dict[int, Draws]:
    """Return the draws of each batch that has some."""
    draws = {}
    for number, arrival in enumerate(arrived):
        if arrival.state is not None:
            draws[number] = Draws(arrival.state, arrival.link.rows)
    return draws


def _bits_per_entry(arrived: Iterable[Arrival]) -> float:
    """Return the bits of all payloads over the entries of what they code."""
    payload_bytes = entries = 0
    for arrival in arrived:
        for tensor in arrival.tensors:
            if tensor.payload_bytes is not None:
                payload_bytes += tensor.payload_bytes
                entries += tensor.exact.numel()
    return 8 * payload_bytes / entries


def _attacked_part(inputs: Structure) -> tuple[str, Tensor]:
    """Return the tensor that is attacked, and its name if there are several."""
    tensors = list(_named_tensors(inputs, ""))
    numbers = [named for named in tensors if is_float(named[1])]
    candidates = numbers or tensors
    name, tensor = candidates[0]
    if len(tensors) == 1:
        name = ""
    return name, tensor


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
        part_name = f"{name}.{key}" if name else str(key)
        yield from _named_tensors(part, part_name)
