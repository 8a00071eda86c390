"""Checks of what a device leaves for the next turn: how many tensors, how large."""

from collections.abc import Collection, Sequence

from flwr_splitfc.codec.format.fields import MOST_DIMENSIONS
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.parts import MOST_PARTS
from flwr_splitfc.exchange.protocol.split_errors import LimitExceeded

_MOST_NAME_CHARACTERS = 200
_TENSOR_BYTES = 256  # about what one takes in memory beside its data


def check_kept(frames: Sequence[pb.Tensor], most_bytes: int) -> None:
    """Refuse tensors that would take more than `most_bytes` in memory.

    Raises
    ------
    LimitExceeded
    """
    total_bytes = 0
    for frame in frames:
        _check_words(frame)
        total_bytes += _TENSOR_BYTES + len(frame.data)
    if total_bytes > most_bytes:
        raise LimitExceeded(
            f"{len(frames)} tensors of {total_bytes} bytes are left for the next turn, "
            f"at most {most_bytes} bytes may be"
        )


def check_levels(numbers: Collection[int]) -> None:
    """Refuse numbers that no tensor at the cut has.

    Raises
    ------
    LimitExceeded
    """
    if len(numbers) > MOST_PARTS or any(number >= MOST_PARTS for number in numbers):
        raise LimitExceeded(
            f"{len(numbers)} tensors are named beside levels, the largest number "
            f"{max(numbers)}; at most {MOST_PARTS} tensors may be at the cut"
        )


def _check_words(frame: pb.Tensor) -> None:
    for word in (frame.name, frame.dtype):
        if len(word) > _MOST_NAME_CHARACTERS:
            raise LimitExceeded(
                f"a tensor has a name or a dtype of {len(word)} characters, "
                f"at most {_MOST_NAME_CHARACTERS} may be"
            )
    if len(frame.shape) > MOST_DIMENSIONS:
        raise LimitExceeded(
            f"tensor {frame.name!r} has {len(frame.shape)} dimensions, "
            f"at most {MOST_DIMENSIONS} may be"
        )
