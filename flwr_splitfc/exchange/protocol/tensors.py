"""Tensors on the wire: encoded matrices, and plain: optimizer state, whatever else a device keeps, logits."""

import math
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from flwr.app import Array
from torch import Tensor

from flwr_splitfc.codec import PayloadError
from flwr_splitfc.codec.format.fields import MOST_DIMENSIONS
from flwr_splitfc.exchange.protocol import split_pb2 as pb

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    )
}


def to_matrix(array: Array) -> pb.Matrix:
    """The wire form of an encoded matrix."""
    return pb.Matrix(stype=array.stype, shape=array.shape, data=array.data)


def from_matrix(matrix: pb.Matrix) -> Array:
    """What `to_matrix` was given, for a codec to decode, which trusts nothing in it."""
    return Array(
        dtype="float32", shape=tuple(matrix.shape), stype=matrix.stype, data=matrix.data
    )


def pack_tensor(name: str, tensor: Tensor) -> pb.Tensor:
    """The wire form of `tensor`, bit by bit."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in _DTYPES:
        raise ValueError(
            f"cannot send {name!r} of dtype {tensor.dtype}; known: {', '.join(_DTYPES)}"
        )
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    data = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    return pb.Tensor(name=name, dtype=dtype, shape=tensor.shape, data=data)


def unpack_tensor(frame: pb.Tensor) -> Tensor:
    """The tensor in `frame`.

    Raises
    ------
    PayloadError
        For an unknown dtype, more than eight dimensions, or where the bytes are not
        those of the shape.
    """
    dtype = _DTYPES.get(frame.dtype)
    if dtype is None:
        raise PayloadError(
            f"tensor {frame.name!r} has the unknown dtype {frame.dtype!r}"
        )
    if len(frame.shape) > MOST_DIMENSIONS:
        raise PayloadError(
            f"tensor {frame.name!r} has {len(frame.shape)} dimensions, at most {MOST_DIMENSIONS} may be"
        )
    shape = tuple(frame.shape)
    wanted_bytes = math.prod(shape) * dtype.itemsize
    if len(frame.data) != wanted_bytes:
        raise PayloadError(
            f"tensor {frame.name!r} has {len(frame.data)} bytes, its shape needs {wanted_bytes}"
        )
    if not frame.data:
        return torch.empty(shape, dtype=dtype)
    flat = np.frombuffer(frame.data, dtype=np.uint8).copy()
    if dtype == torch.bool and flat.max() > 1:
        raise PayloadError(
            f"tensor {frame.name!r} holds {flat.max()}, which is no bool"
        )
    return torch.from_numpy(flat).view(dtype).reshape(shape)


def pack_tensors(tensors: Mapping[str, Tensor]) -> list[pb.Tensor]:
    """The wire form of a flat dict of tensors."""
    return [pack_tensor(name, tensor) for name, tensor in tensors.items()]


def unpack_tensors(frames: Iterable[pb.Tensor]) -> dict[str, Tensor]:
    """The flat dict of tensors in `frames`; a `PayloadError` as in `unpack_tensor`."""
    return {frame.name: unpack_tensor(frame) for frame in frames}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state (moments, step counts) as a flat dict with keys such as ``"0.exp_avg"``.

    Its settings (learning rate, ...) are not state: they stay what the device's own
    code says.
    """
    return {
        f"{index}.{key}": value
        if isinstance(value, Tensor)
        else torch.tensor(value, dtype=torch.float64)
        for index, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
        if value is not None
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Give `optimizer` the state that `optimizer_tensors` took from another one over the same parameters.

    Raises
    ------
    PayloadError
        Where the tensors are not the state of such an optimizer.
    """
    sizes = [p.shape for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        if (
            not index.isdecimal()
            or int(index) >= len(sizes)
            or tensor.shape not in (sizes[int(index)], ())
        ):
            raise PayloadError(
                f"optimizer state {name!r} of shape {tuple(tensor.shape)} fits no parameter"
            )
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )
