"""What arrives of batches at the server: coded and decoded again, as in training.

A codec looks at a whole batch, so batches stay whole.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from flwr_splitfc.codec import CutCodec, Link
from flwr_splitfc.codec.quality import labels_per_row
from flwr_splitfc.exchange.protocol.parts import coded_tensors
from flwr_splitfc.model.structures import Structure, is_float, mapped, rows_of

DeviceHalf = Callable[[Structure], Structure]
"""Gives features (B, ...) for inputs (B, ...): a device half, with its defences."""


@dataclass(frozen=True, eq=False)
class ArrivedTensor:
    """A floating-point tensor at the cut.

    Parameters
    ----------
    exact : Tensor of shape (B, ...)
        As it left the half, float32.
    decoded : Tensor of shape (B, ...)
        As the server has it, zeros where nothing was sent.
    link : Link
        The server's.
    payload_bytes : int or None
        None for whole numbers beside the features, which no codec changes.
    """

    exact: Tensor
    decoded: Tensor
    link: Link
    payload_bytes: int | None

    @property
    def seen(self) -> Tensor:
        """What the server has of the rows that were sent, (b, ...)."""
        return self.link.sent_rows(self.decoded)

    @property
    def own(self) -> Tensor:
        """The same rows before the codec, (b, ...)."""
        return self.link.sent_rows(self.exact)

    @property
    def sent(self) -> Tensor:
        """Which of their entries were sent, bool (b, D)."""
        link = self.link
        ones = link.expand(torch.ones(link.sent, link.kept))
        return link.sent_rows(ones) > 0


@dataclass(frozen=True, eq=False)
class Arrival:
    """A batch as the server has it.

    Parameters
    ----------
    features : structure of Tensor of shape (b, ...)
        Of the rows that were sent.
    tensors : list of ArrivedTensor
        The floating-point ones among the features, in order.
    inputs : structure of Tensor of shape (B, ...)
    labels : Tensor of shape (b, ...)
    full_rows : int
        Of the largest batch so far.
    labels_per_row : float
        As the codec was told.
    state : Tensor or None
        Of torch's generator before the half's pass; None if the pass drew nothing.
    """

    features: Structure
    tensors: list[ArrivedTensor]
    inputs: Structure
    labels: Tensor
    full_rows: int
    labels_per_row: float
    state: Tensor | None

    @property
    def link(self) -> Link:
        """Says which rows were sent: of several tensors all."""
        return self.tensors[-1].link


def arrivals(
    device_half: DeviceHalf,
    codec: CutCodec,
    batches: Iterable[tuple[Structure, Tensor]],
    *,
    samples: int,
    generator: torch.Generator | None = None,
    all_rows: bool,
    levelled: bool | None = None,
) -> Iterator[Arrival]:
    """Yield batches as they arrive, whole, until they have `samples` rows.

    Parameters are those of `released`.
    """
    count = full_rows = 0
    for inputs, labels in batches:
        if count >= samples:
            break
        before = torch.get_rng_state()
        # with a graph, as in training: whole numbers without one are not coded
        with torch.enable_grad():
            features = device_half(inputs)
        drew = not torch.equal(before, torch.get_rng_state())
        full_rows = max(full_rows, rows_of(features))
        per_row = labels_per_row(labels.numel(), len(labels))
        sender = _Sender(codec, generator, full_rows, all_rows, per_row, levelled)
        arrived, tensors = sender.send(features)
        sent_labels = tensors[-1].link.sent_rows(labels)
        yield Arrival(
            arrived,
            tensors,
            inputs,
            sent_labels,
            full_rows,
            per_row,
            before if drew else None,
        )
        count += tensors[-1].link.sent


@dataclass(frozen=True, eq=False)
class _Sender:
    """Codes the features of a batch and decodes them again."""

    codec: CutCodec
    generator: torch.Generator | None
    full_rows: int
    all_rows: bool
    labels_per_row: float
    levelled: bool | None

    def send(self, features: Structure) -> tuple[Structure, list[ArrivedTensor]]:
        """Return what arrives of features (B, ...), and how."""
        coded = coded_tensors(features)
        # rows are left out of all tensors or of none
        all_rows = self.all_rows or not isinstance(features, Tensor)
        tensors: list[ArrivedTensor] = []

        def seen(leaf: Structure) -> Structure:
            if not is_float(leaf):
                return leaf
            if any(leaf is one for one in coded):
                tensor = self._coded(leaf.detach(), all_rows)
            else:
                tensor = _exactly(leaf.detach())
            tensors.append(tensor)
            return tensor.seen

        return mapped(features, seen), tensors

    def _coded(self, features: Tensor, all_rows: bool) -> ArrivedTensor:
        array, _ = self.codec.encode_features(
            features,
            generator=self.generator,
            full_rows=self.full_rows,
            all_rows=all_rows,
            labels_per_row=self.labels_per_row,
            levelled=self.levelled,
        )
        decoded, link = self.codec.decode_features(
            array, expect=(len(features), features[0].numel())
        )
        decoded = decoded.reshape(features.shape)
        return ArrivedTensor(features.float(), decoded, link, len(array.data))


def _exactly(tensor: Tensor) -> ArrivedTensor:
    """Return what arrives of whole numbers beside the features."""
    exact = tensor.float()
    link = Link(*exact.flatten(1).shape)
    return ArrivedTensor(exact, exact, link, payload_bytes=None)
