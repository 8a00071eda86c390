"""Structures of tensors on the wire: a row of parts, each before those within it."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from flwr_splitfc.codec import PayloadError, pack_labels, unpack_labels
from flwr_splitfc.codec.labels import labels_size
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.claims import FREE_ENTRIES, check_claims
from flwr_splitfc.model.structures import Structure, float_tensors

MOST_PARTS = 128
"""Tensors, tuples, lists, dicts and Nones of a structure together."""

MOST_DEPTH = 8
"""Tuples, lists and dicts within one another."""

_MOST_WHOLE = 2**24  # below it, float32 holds every whole number


def pack_parts(
    structure: Structure, pack: Callable[[Tensor], pb.Part]
) -> list[pb.Part]:
    """Return the parts of a structure, with its tensors as `pack` writes them."""
    if structure is None:
        return [pb.Part()]
    if isinstance(structure, Mapping):
        parts = [pb.Part(dict=len(structure))]
        for key, value in structure.items():
            packed = pack_parts(value, pack)
            packed[0].key = key
            parts += packed
        return parts
    if isinstance(structure, tuple | list):
        size = len(structure)
        is_tuple = isinstance(structure, tuple)
        parts = [pb.Part(tuple=size) if is_tuple else pb.Part(list=size)]
        for value in structure:
            parts += pack_parts(value, pack)
        return parts
    return [pack(structure)]


def unpack_parts(parts: Sequence[pb.Part], unpack: Callable[[pb.Part], Any]) -> Any:
    """Return the structure of parts, with its leaves as `unpack` reads them.

    Raises
    ------
    PayloadError
        If the parts are no structure, or too many, or too deep.
    """
    if len(parts) > MOST_PARTS:
        raise PayloadError(
            f"a structure has {len(parts)} parts, at most {MOST_PARTS} may be"
        )
    left = iter(parts)
    structure = _unpack(_next(left), left, unpack, MOST_DEPTH)
    more = len(list(left))
    if more:
        raise PayloadError(f"{more} parts follow the structure that they are of")
    return structure


def _unpack(
    part: pb.Part,
    left: Iterator[pb.Part],
    unpack: Callable[[pb.Part], Any],
    depth_left: int,
) -> Any:
    """Return the structure that begins with a part."""
    kind = part.WhichOneof("kind")
    if kind is None:
        return None
    if kind in ("coded", "exact"):
        return unpack(part)
    if depth_left == 0:
        raise PayloadError(f"a structure is more than {MOST_DEPTH} deep")
    keys: list[str] = []
    values: list[Any] = []
    for _ in range(getattr(part, kind)):
        inner = _next(left)
        keys.append(inner.key)
        values.append(_unpack(inner, left, unpack, depth_left - 1))
    if kind == "tuple":
        return tuple(values)
    if kind == "list":
        return values
    if len(set(keys)) < len(keys):
        raise PayloadError(f"a dict of {len(keys)} has a key twice")
    return dict(zip(keys, values, strict=True))


def _next(left: Iterator[pb.Part]) -> pb.Part:
    part = next(left, None)
    # the sizes of tuples, lists and dicts may be any
    if part is None:
        raise PayloadError("a structure ends before its last part")
    return part


def coded_tensors(features: Structure) -> list[Tensor]:
    """Return the floating point tensors of a structure that codes may change.

    Whole numbers without a graph are data beside the features, such as a mask of 0.0
    and 1.0, and go as `whole_part`. Where there is nothing else, as where codes of 0.0
    and 1.0 predict, the tensor of the smallest numbers is the features, or the largest
    of several: ids and lengths are larger, and codes change large numbers most.
    """
    tensors = float_tensors(features)
    coded = [tensor for tensor in tensors if not _is_data(tensor)]
    return coded or [min(tensors, key=_unlike_features)]


def _unlike_features(tensor: Tensor) -> tuple[float, int]:
    """Order tensors of whole numbers: the features come first."""
    if tensor.numel() == 0:  # the server refuses it as features
        return math.inf, 0
    return tensor.float().abs().max().item(), -tensor.numel()


def _is_data(tensor: Tensor) -> bool:
    if tensor.requires_grad:
        return False
    # the server half gets float32, whatever it was
    numbers = tensor.float()
    is_whole = (numbers == numbers.round()) & (numbers.abs() < _MOST_WHOLE)
    return bool(is_whole.all())


def whole_part(tensor: Tensor) -> pb.Part:
    """Return the part of a floating point tensor of whole numbers.

    It arrives as float32, exactly; -0.0 arrives as 0.0.
    """
    # integers take the bits that their values need, and floats all of theirs
    numbers = tensor.float().to(torch.int32)
    return pb.Part(exact=pack_labels(numbers), as_float=True)


def exact_part(tensor: Tensor) -> pb.Part:
    """Return the part of a tensor that arrives as it is.

    Raises
    ------
    ValueError
        If its dtype is none of those of labels.
    """
    return pb.Part(exact=pack_labels(tensor))


def unpack_exact(part: pb.Part, most_entries: int = FREE_ENTRIES) -> Tensor:
    """Return the tensor that `exact_part` or `whole_part` was given.

    Raises
    ------
    PayloadError
        If it is none, or has more entries, or numbers that float32 does not hold.
    """
    if part.WhichOneof("kind") != "exact":
        raise PayloadError("a tensor is coded, wanted an exact one")
    tensor = unpack_labels(part.exact, most_entries)
    if not part.as_float:
        return tensor
    if tensor.dtype != torch.int32:
        raise PayloadError(f"whole numbers are {tensor.dtype}, wanted torch.int32")
    # not by `abs`: of the smallest int32 it is negative
    if ((tensor <= -_MOST_WHOLE) | (tensor >= _MOST_WHOLE)).any():
        raise PayloadError("whole numbers are 2^24 or more in magnitude")
    return tensor.float()


def unpack_output(parts: Sequence[pb.Part]) -> Structure:
    """Return the structure of exact tensors that the server half's output is.

    Raises
    ------
    PayloadError
        If it is none, or claims too many entries.
    """
    entries = sum(labels_size(part.exact) for part in parts)
    sent_bytes = sum(part.ByteSize() for part in parts)
    check_claims("the output", entries, sent_bytes)
    return unpack_parts(parts, unpack_exact)
