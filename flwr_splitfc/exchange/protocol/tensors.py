"""Tensors on the wire: encoded matrices, and tensors that are plain or encoded.

Plain, bit by bit, are logits and whatever a device keeps; optimizer state is encoded
where the ticket says so, which is `pack_state`.
"""

import math
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from flwr.app import Array
from torch import Tensor

from flwr_splitfc.codec import CodedMatrix, CutCodec, Link, PayloadError
from flwr_splitfc.codec.format.fields import MOST_DIMENSIONS
from flwr_splitfc.codec.model_arrays import (
    CODED_DTYPES,
    EXACT_BITS,
    EXACT_STYPE,
    decode_array,
    encode_state,
)
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.claims import check_claims, claimed_entries
from flwr_splitfc.exchange.protocol.seeds import derive_seed

_DTYPES = {
    "bool": torch.bool,
    "uint8": torch.uint8,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
    "complex64": torch.complex64,
    "complex128": torch.complex128,
}

_USUAL_DTYPE = "float32"

_CODINGS = {
    EXACT_STYPE: pb.ARRAY_EXACT,
    "array-uniform/1": pb.ARRAY_UNIFORM,
    "array-log/1": pb.ARRAY_LOG,
    "array-levelled/1": pb.ARRAY_LEVELLED,
}
_STYPES = {coding: stype for stype, coding in _CODINGS.items()}


def to_matrix(array: Array) -> pb.Matrix:
    """Return the wire form of an encoded matrix."""
    matrix = pb.Matrix()
    write_matrix(matrix, array)
    return matrix


def write_matrix(matrix: pb.Matrix, array: Array) -> None:
    """Put an encoded matrix into its place in a frame, with no copy on the way."""
    matrix.stype = array.stype
    matrix.shape.extend(array.shape)
    matrix.data = array.data


def from_matrix(matrix: pb.Matrix) -> CodedMatrix:
    """Return the encoded matrix in `matrix`, unchecked: the codec checks it."""
    return CodedMatrix(tuple(matrix.shape), matrix.stype, matrix.data)


def coded_gradient(matrix: pb.Matrix, codec: CutCodec, link: Link) -> CodedMatrix:
    """Return the encoded gradient in `matrix`, by the features of `link`."""
    return CodedMatrix((link.rows, link.width), codec.stype, matrix.data)


def pack_tensor(name: str, tensor: Tensor) -> pb.Tensor:
    """Return the wire form of `tensor`, bit by bit.

    Raises
    ------
    ValueError
        If its dtype has no name on the wire.
    """
    dtype = _dtype_name(name, tensor)
    return pb.Tensor(
        name=name, dtype=_sent(dtype), shape=tensor.shape, data=_bytes_of(tensor)
    )


def pack_state(name: str, tensor: Tensor, bits: int, seed: int) -> pb.Tensor:
    """Return the wire form of a tensor of optimizer state.

    Parameters
    ----------
    name : str
    tensor : Tensor
    bits : int
        Bits per entry of floats, see `flwr_splitfc.codec.model_arrays.encode_state`;
        at 32, and where a code is not worth it, all are sent bit by bit.
    seed : int
        Of the turn. From this and the name come the random numbers of the rounding.

    Raises
    ------
    ValueError
        If its dtype has no name on the wire.
    """
    if bits == EXACT_BITS or _dtype_name(name, tensor) not in CODED_DTYPES:
        return pack_tensor(name, tensor)
    draw = np.random.default_rng(derive_seed(seed, "state", name))
    values = tensor.detach().cpu().numpy()
    return pack_array(name, encode_state(values, bits, draw))


def _dtype_name(name: str, tensor: Tensor) -> str:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in _DTYPES:
        raise ValueError(
            f"cannot send {name!r} of dtype {tensor.dtype}; known: {', '.join(_DTYPES)}"
        )
    return dtype


def _bytes_of(tensor: Tensor) -> bytes:
    """The entries in row-major order, in this machine's (little-endian) bytes."""
    # a conjugate is a mark on the entries of another tensor
    flat = tensor.detach().cpu().resolve_conj().contiguous().reshape(-1)
    # one that came from an empty NumPy array has a stride of 0, and no view as bytes
    if flat.numel() == 0:
        return b""
    return flat.view(torch.uint8).numpy().tobytes()


def unpack_tensor(frame: pb.Tensor) -> Tensor:
    """Return the tensor in `frame`.

    Raises
    ------
    PayloadError
        For an unknown dtype, more than eight dimensions, or where the bytes are not
        those of the shape.
    """
    if frame.coding != pb.ARRAY_EXACT:
        return torch.from_numpy(decode_array(unpack_array(frame)))
    return unpack_plain(frame)


def unpack_plain(frame: pb.Tensor) -> Tensor:
    """Return the tensor in `frame`, which takes as many bytes as came.

    Raises
    ------
    PayloadError
        As `unpack_tensor` does, and if the tensor is encoded.
    """
    if frame.coding != pb.ARRAY_EXACT:
        raise PayloadError(f"tensor {frame.name!r:.100} is encoded, wanted it plain")
    dtype = _DTYPES.get(frame.dtype or _USUAL_DTYPE)
    if dtype is None:
        raise PayloadError(
            f"tensor {frame.name!r} has the unknown dtype {frame.dtype!r}"
        )
    _check_size(frame, dtype)
    shape = tuple(frame.shape)
    if not frame.data:
        return torch.empty(shape, dtype=dtype)
    flat = np.frombuffer(frame.data, dtype=np.uint8).copy()
    if dtype == torch.bool and flat.max() > 1:
        raise PayloadError(
            f"tensor {frame.name!r} holds {flat.max()}, which is no bool"
        )
    return torch.from_numpy(flat).view(dtype).reshape(shape)


def _check_size(frame: pb.Tensor, dtype: torch.dtype) -> None:
    if len(frame.shape) > MOST_DIMENSIONS:
        raise PayloadError(
            f"tensor {frame.name!r} has {len(frame.shape)} dimensions, "
            f"at most {MOST_DIMENSIONS} may be"
        )
    wanted_bytes = math.prod(frame.shape) * dtype.itemsize
    if len(frame.data) != wanted_bytes:
        raise PayloadError(
            f"tensor {frame.name!r} has {len(frame.data)} bytes, "
            f"its shape needs {wanted_bytes}"
        )
    # torch computes the strides of an empty tensor, too
    entries = claimed_entries(frame.shape)
    check_claims(f"tensor {frame.name!r}", entries, wanted_bytes)


def pack_array(name: str, array: Array) -> pb.Tensor:
    """Return the wire form of an array that the codec of arrays made."""
    return pb.Tensor(
        name=name,
        dtype=_sent(array.dtype),
        shape=array.shape,
        data=array.data,
        coding=_CODINGS[array.stype],
    )


def unpack_array(frame: pb.Tensor) -> Array:
    """Return the encoded array in `frame`, unchecked: `decode_array` checks it.

    Raises
    ------
    PayloadError
        If its coding is unknown.
    """
    if frame.coding not in _STYPES:
        raise PayloadError(f"tensor {frame.name!r} has coding {frame.coding}")
    return Array(
        dtype=frame.dtype or _USUAL_DTYPE,
        shape=tuple(frame.shape),
        stype=_STYPES[frame.coding],
        data=frame.data,
    )


def _sent(dtype: str) -> str:
    return "" if dtype == _USUAL_DTYPE else dtype


def pack_tensors(tensors: Mapping[str, Tensor]) -> list[pb.Tensor]:
    """Return the wire form of a flat dict of tensors, as `pack_tensor` does."""
    return [pack_tensor(name, tensor) for name, tensor in tensors.items()]


def unpack_tensors(frames: Iterable[pb.Tensor]) -> dict[str, Tensor]:
    """Return the flat dict of tensors in `frames`, as `unpack_tensor` does."""
    return {frame.name: unpack_tensor(frame) for frame in frames}
