"""Decoding of what a device sent: whatever is wrong with it has an error by name."""

from dataclasses import dataclass
from functools import cached_property, partial
from math import prod
from typing import Any, Literal, NamedTuple, TypeAlias

from torch import Tensor

from flwr_splitfc.codec import CodedMatrix, CutCodec, Link, PayloadError, unpack_labels
from flwr_splitfc.codec.format.fields import MOST_DIMENSIONS, view
from flwr_splitfc.codec.format.label_header import unpack_label_header
from flwr_splitfc.codec.labels import labels_size
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.parts import unpack_exact, unpack_parts
from flwr_splitfc.exchange.protocol.split_errors import (
    FeaturesRefused,
    GradientRefused,
    LabelsRefused,
    LimitExceeded,
)
from flwr_splitfc.exchange.protocol.tensors import from_matrix
from flwr_splitfc.exchange.server.half.feature_shapes import FeatureShape, is_shaped
from flwr_splitfc.model.structures import Structure, leaves_of, mapped
from flwr_splitfc.settings import key_of

FeatureFrame: TypeAlias = pb.Step | pb.Forward | pb.Predict
"""The frames that hold features."""

RowsLimit = Literal["max_train_rows", "max_predict_rows"]
"""The fields of `Limits` that say how many samples a mini-batch may have."""

_FLOAT32_BYTES = 4
_EXACT_BYTES = 8  # the largest type has so many


@dataclass(frozen=True, eq=False)
class ReceivedTensor:
    """A tensor of features, as it was decoded.

    Parameters
    ----------
    tensor : Tensor
        Of shape (B, ...), if it was coded.
    link : Link or None
        Of a tensor that was coded.
    one_way : bool
        Whether the device needs no gradient by it.
    """

    tensor: Tensor
    link: Link | None = None
    one_way: bool = True

    @property
    def sent(self) -> Tensor:
        """The rows that were sent."""
        return self.tensor if self.link is None else self.link.sent_rows(self.tensor)


class BatchCounts(NamedTuple):
    """The size of a mini-batch.

    Parameters
    ----------
    rows : int
        ``B``, of which some may not have been sent.
    entries : int
        Of the coded tensors' B x D matrices.
    """

    rows: int
    entries: int


@dataclass(frozen=True, eq=False)
class Received:
    """The features of a mini-batch, as they were decoded.

    Parameters
    ----------
    features : structure of ReceivedTensor
    """

    features: Structure

    @cached_property
    def links(self) -> list[Link]:
        """Of the coded tensors, in order."""
        return [one.link for one in self._tensors if one.link is not None]

    @property
    def floats(self) -> list[ReceivedTensor]:
        """The floating point tensors, in order."""
        return [one for one in self._tensors if one.tensor.is_floating_point()]

    @cached_property
    def wanted(self) -> list[bool]:
        """Of each floating point tensor, whether the device needs a gradient."""
        return [not one.one_way for one in self.floats]

    @cached_property
    def wanted_links(self) -> list[Link]:
        """Of the coded tensors by which the device needs a gradient."""
        return [
            one.link
            for one in self._tensors
            if one.link is not None and not one.one_way
        ]

    @property
    def _tensors(self) -> list[ReceivedTensor]:
        return leaves_of(self.features)

    @cached_property
    def counts(self) -> BatchCounts:
        """What the ledger counts."""
        links = self.links
        entries = sum(link.rows * link.width for link in links)
        return BatchCounts(links[0].rows, entries)

    @property
    def sent(self) -> Structure:
        """The features that were sent, as the server half takes them."""
        return mapped(self.features, lambda one: one.sent)


class FeatureRules(NamedTuple):
    """What features have to be.

    Parameters
    ----------
    codec : CutCodec
        What is agreed at the cut.
    stypes : tuple of str
        The byte formats that are agreed for what the device does, of those of `codec`.
    feature_shape : structure of shapes, or None
        Of a sample, as `HalfTrainer` has it; None is any.
    rows_limit : RowsLimit
        The limit that `max_rows` is.
    max_rows : int
        The most samples.
    max_bytes : int
        The largest size of all tensors, with four bytes for a number of the floating
        point ones and eight for others.
    """

    codec: CutCodec
    stypes: tuple[str, ...]
    feature_shape: FeatureShape
    rows_limit: RowsLimit
    max_rows: int
    max_bytes: int


def decode_features(
    frame: FeatureFrame, rules: FeatureRules
) -> tuple[Received, list[bytes]]:
    """Decode the features in a frame, and return their payloads, too.

    protobuf copies a payload whenever it is asked for it: this is the one time.

    Raises
    ------
    FeaturesRefused, LimitExceeded
    """
    features_bytes = claimed_bytes(frame)
    if features_bytes > rules.max_bytes:
        raise FeaturesRefused(
            f"features of {features_bytes} bytes are over {rules.max_bytes} bytes"
        )
    payloads: list[bytes] = []
    if not frame.parts:
        one_way = not isinstance(frame, pb.Predict) and frame.one_way
        _check_shapes(_claimed_shape(frame.features, rules)[1:], rules)
        features = _decode_matrix(frame.features, rules, payloads, one_way=one_way)
        return Received(features), payloads
    claimed = partial(_claimed_part_shape, rules)
    decode = partial(_decode_part, rules, payloads)
    try:
        # a few bytes may claim what takes seconds and gigabytes to decode
        _check_shapes(unpack_parts(frame.parts, claimed), rules)
        received = Received(unpack_parts(frame.parts, decode))
    except PayloadError as error:
        raise FeaturesRefused(str(error)) from error
    links = received.links
    if not links:
        raise FeaturesRefused("no tensor of the features is floating point")
    for link in links:
        if link.rows != links[0].rows:
            raise FeaturesRefused(
                f"one tensor has {links[0].rows} rows, another {link.rows}"
            )
        if link.samples is not None:
            raise FeaturesRefused(
                f"{link.sent} of {link.rows} rows came; of several tensors all have to"
            )
    _check_floats(received, links[0].rows)
    return received, payloads


def _check_floats(received: Received, rows: int) -> None:
    """Refuse floating point tensors without a row for each sample.

    Raises
    ------
    FeaturesRefused
    """
    for one in received.floats:
        shape = tuple(one.tensor.shape)
        if shape[:1] != (rows,):
            raise FeaturesRefused(
                f"whole numbers as floats have shape {shape}, wanted {rows} rows"
            )


def _claimed_part_shape(rules: FeatureRules, part: pb.Part) -> tuple[int, ...]:
    """Return the shape that a tensor has, as its part says, for one sample."""
    if part.WhichOneof("kind") == "coded":
        return _claimed_shape(part.coded, rules)[1:]
    header, _ = unpack_label_header(view(part.exact))
    return header.shape[1:]


def _decode_part(
    rules: FeatureRules, payloads: list[bytes], part: pb.Part
) -> ReceivedTensor:
    if part.WhichOneof("kind") == "coded":
        return _decode_matrix(part.coded, rules, payloads, one_way=part.one_way)
    tensor = unpack_exact(part, rules.max_bytes // _EXACT_BYTES)
    payloads.append(part.exact)
    # they arrive as integers
    if tensor.is_floating_point() and not part.as_float:
        raise PayloadError(f"a tensor of {tensor.dtype} is exact, wanted a coded one")
    return ReceivedTensor(tensor)


def _claimed_shape(matrix: pb.Matrix, rules: FeatureRules) -> tuple[int, ...]:
    """Return the shape (B, ...) that a matrix says it has, if it may have that."""
    # before anything takes the shape apart: it may have a million dimensions
    if len(matrix.shape) > MOST_DIMENSIONS:
        raise FeaturesRefused(
            f"features have {len(matrix.shape)} dimensions, "
            f"at most {MOST_DIMENSIONS} may be"
        )
    if matrix.stype not in rules.stypes:
        agreed = " or ".join(map(repr, rules.stypes))
        raise FeaturesRefused(
            f"features are coded as {matrix.stype!r}, agreed is {agreed}"
        )
    shape = tuple(matrix.shape)
    if len(shape) < 2 or 0 in shape:
        raise FeaturesRefused(
            f"features have shape {shape}, wanted (B, ...) with no empty dimension"
        )
    if shape[0] > rules.max_rows:
        limit = rules.rows_limit
        run_config_key = "split-" + key_of(limit)
        raise LimitExceeded(
            f"a mini-batch has {shape[0]} samples, at most {rules.max_rows} may be: "
            f"send smaller ones, or raise the strategy's Limits({limit}=...) "
            f"(run-config: {run_config_key})"
        )
    return shape


def _decode_matrix(
    matrix: pb.Matrix, rules: FeatureRules, payloads: list[bytes], *, one_way: bool
) -> ReceivedTensor:
    """Decode a matrix whose shape was checked."""
    shape = tuple(matrix.shape)
    columns = prod(shape[1:])
    coded = from_matrix(matrix)
    payloads.append(coded.data)
    try:
        features, link = rules.codec.decode_features(
            coded, expect=(rules.max_rows, columns)
        )
    except PayloadError as error:
        raise FeaturesRefused(str(error)) from error
    return ReceivedTensor(features.reshape(shape), link, one_way)


def _check_shapes(shapes: Any, rules: FeatureRules) -> None:
    """Refuse features of other shapes than the strategy wants, if it wants some.

    Raises
    ------
    FeaturesRefused
    """
    wanted = rules.feature_shape
    if wanted is not None and not is_shaped(shapes, wanted):
        raise FeaturesRefused(
            f"features of a sample have shape {shapes}, feature_shape is {wanted}"
        )


def claimed_bytes(frame: FeatureFrame) -> int:
    """Return the size of the features, as `FeatureRules` counts it, by their claims."""
    if not frame.parts:
        return matrix_bytes(frame.features)
    return sum(_part_bytes(part) for part in frame.parts)


def _part_bytes(part: pb.Part) -> int:
    match part.WhichOneof("kind"):
        case "coded":
            return matrix_bytes(part.coded)
        case "exact":
            return _EXACT_BYTES * labels_size(part.exact)
        case _:
            return 0


def matrix_bytes(matrix: pb.Matrix) -> int:
    """Return the size as float32 that a matrix has, as it says itself."""
    # more dimensions are refused, and their product might be a number of a megabyte
    if not 0 < len(matrix.shape) <= MOST_DIMENSIONS:
        return 0
    return _FLOAT32_BYTES * prod(matrix.shape)


def decode_labels(data: bytes, rows: int, *, max_entries: int) -> Tensor:
    """Decode the labels of `rows` samples, of shape (rows, ...).

    Raises
    ------
    LabelsRefused
    """
    try:
        labels = unpack_labels(data, max_entries=max_entries)
    except PayloadError as error:
        raise LabelsRefused(str(error)) from error
    if labels.ndim < 1 or labels.shape[0] != rows:
        raise LabelsRefused(
            f"labels have shape {tuple(labels.shape)}, wanted {rows} rows"
        )
    return labels


def decode_output_gradient(coded: CodedMatrix, codec: CutCodec, link: Link) -> Tensor:
    """Decode the gradient of an output that went down with `link`, of shape (B, D).

    Raises
    ------
    GradientRefused
    """
    try:
        return codec.decode_gradient(coded, link)
    except PayloadError as error:
        raise GradientRefused(str(error)) from error


def check_budget(codec: CutCodec, rows: int, columns: int) -> None:
    """Refuse a batch of (rows, columns) that `codec` could not send on in its budgets.

    Raises
    ------
    LimitExceeded
    """
    try:
        codec.check_budget(rows, columns)
    except ValueError as error:
        raise LimitExceeded(str(error)) from error
