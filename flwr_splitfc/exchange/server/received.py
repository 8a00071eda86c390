"""Decoding of what a device sent: whatever is wrong with it has an error by name."""

from math import prod

from torch import Tensor

from flwr_splitfc.codec import CutCodec, Link, PayloadError, unpack_labels
from flwr_splitfc.codec.format.fields import MOST_DIMENSIONS
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.split_errors import (
    FeaturesRefused,
    GradientRefused,
    LabelsRefused,
    LimitExceeded,
)
from flwr_splitfc.exchange.protocol.tensors import from_matrix

_FLOAT32_BYTES = 4


def decode_features(
    matrix: pb.Matrix,
    codec: CutCodec,
    *,
    stype: str,
    sample_shape: tuple[int, ...] | None,
    max_rows: int,
    max_bytes: int,
) -> tuple[Tensor, Link]:
    """Decode features.

    Parameters
    ----------
    matrix : pb.Matrix
    codec : CutCodec
        What is agreed at the cut.
    stype : str
        The byte format that is agreed for what the device does, of those of `codec`.
    sample_shape : tuple of int or None
        The shape of a sample's features that the server half takes; None is any.
    max_rows : int
        The most samples.
    max_bytes : int
        The largest size as float32.

    Returns
    -------
    features : Tensor of shape (B, ...)
    link : Link
        For the gradient on its way back.

    Raises
    ------
    FeaturesRefused, LimitExceeded
    """
    # before anything takes the shape apart: it may have a million dimensions
    if len(matrix.shape) > MOST_DIMENSIONS:
        raise FeaturesRefused(
            f"features have {len(matrix.shape)} dimensions, "
            f"at most {MOST_DIMENSIONS} may be"
        )
    if matrix.stype != stype:
        raise FeaturesRefused(
            f"features are coded as {matrix.stype!r}, agreed is {stype!r}"
        )
    shape = tuple(matrix.shape)
    _check_sample_shape(shape, sample_shape)
    if matrix_bytes(matrix) > max_bytes:
        raise FeaturesRefused(f"features of shape {shape} are over {max_bytes} bytes")
    if shape[0] > max_rows:
        raise LimitExceeded(
            f"a mini-batch has {shape[0]} samples, at most {max_rows} may be"
        )
    columns = prod(shape[1:])
    try:
        features, link = codec.decode_features(
            from_matrix(matrix), expect=(max_rows, columns)
        )
    except PayloadError as error:
        raise FeaturesRefused(str(error)) from error
    return features.reshape(shape), link


def matrix_bytes(matrix: pb.Matrix) -> int:
    """Return the size as float32 that a matrix has, as it says itself."""
    # more dimensions are refused, and their product might be a number of a megabyte
    if not 0 < len(matrix.shape) <= MOST_DIMENSIONS:
        return 0
    return _FLOAT32_BYTES * prod(matrix.shape)


def _check_sample_shape(
    shape: tuple[int, ...], sample_shape: tuple[int, ...] | None
) -> None:
    if len(shape) < 2 or 0 in shape:
        raise FeaturesRefused(
            f"features have shape {shape}, wanted (B, ...) with no empty dimension"
        )
    if sample_shape is not None and shape[1:] != sample_shape:
        raise FeaturesRefused(
            f"features of a sample have shape {shape[1:]}, "
            f"the turn takes {sample_shape}"
        )


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
    if labels.ndim < 1 or len(labels) != rows:
        raise LabelsRefused(
            f"labels have shape {tuple(labels.shape)}, wanted {rows} rows"
        )
    return labels


def decode_output_gradient(matrix: pb.Matrix, codec: CutCodec, link: Link) -> Tensor:
    """Decode the gradient of an output that went down with `link`, of shape (B, D).

    Raises
    ------
    GradientRefused
    """
    try:
        return codec.decode_gradient(from_matrix(matrix), link)
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
