"""The state that devices keep between turns, in the server's hands.

It is optimizer state, and whatever else devices name.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, Literal, TypeAlias, get_args

from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.server.turn.level_votes import LevelVotes
from flwr_splitfc.exchange.server.turn.relayed_state import (
    Shape,
    check_relayed,
    is_usual,
)

OptimizerState = Literal["relay", "per-device", "fresh"]

_TensorsByOwner: TypeAlias = dict[str, Sequence[pb.Tensor]]
_STATE_BYTES_PER_ENTRY = 64  # of the device half; Adam's two float32 take eight
_SPARE_STATE_BYTES = 2**20  # for its scalars
_RELAYED = ""  # owns the optimizer state that goes round; no device has this name


@dataclass(frozen=True)
class Kept:
    """Tensors as they came off the wire; the server only keeps them.

    Parameters
    ----------
    optimizer, state : sequence of pb.Tensor
    levels, no_levels : sequence of int
        The numbers of tensors at the cut whose channels are to be levelled, and of
        those of which a turn's gradients told otherwise.
    """

    optimizer: Sequence[pb.Tensor] = ()
    state: Sequence[pb.Tensor] = ()
    levels: Sequence[int] = ()
    no_levels: Sequence[int] = ()


class DeviceStates:
    """Hands each device's next turn what the last one left.

    Parameters
    ----------
    optimizer_state : "relay", "per-device" or "fresh"
        Whose optimizer state a turn starts from: that of the turn before, on whichever
        device (one optimizer follows the device half from device to device); the
        device's own last one; none. Which tensors are levelled is the same for all
        devices. The rest of a device's state is always its own.
    half : sequence of tuple of int, optional
        The shapes of the device half's arrays, which optimizer state that is relayed
        has to fit; by default it is relayed as it comes.
    """

    def __init__(
        self, optimizer_state: OptimizerState, half: Sequence[Shape] | None = None
    ) -> None:
        choices = get_args(OptimizerState)
        if optimizer_state not in choices:
            raise ValueError(
                f"optimizer_state is {optimizer_state!r}, wanted one of {choices}"
            )
        self.optimizer_state = optimizer_state
        self._half = half
        self._lock = Lock()
        self._optimizer: _TensorsByOwner = {}
        self._state: _TensorsByOwner = {}
        # Whether a turn failed that had started from the relayed state. No checkpoint
        # has it: a round after which one is written has left another state.
        self._has_failed = False
        self._levels = LevelVotes()

    def _optimizer_owner(self, device: str) -> str:
        return _RELAYED if self.optimizer_state == "relay" else device

    @property
    def keeps_optimizer(self) -> bool:
        """Whether the optimizer state that a device leaves is of use to any turn."""
        return self.optimizer_state != "fresh"

    def most_optimizer_bytes(self, default: int) -> int:
        """Return how many bytes of optimizer state a device may leave.

        Parameters
        ----------
        default : int
            What to return where the device half is not known.
        """
        if self._half is None:
            return default
        entries = sum(math.prod(shape) for shape in self._half)
        return _SPARE_STATE_BYTES + _STATE_BYTES_PER_ENTRY * entries

    def of(self, device: str) -> Kept:
        """Return what `device` gets at the start of its next turn."""
        with self._lock:
            optimizer = self._optimizer.get(self._optimizer_owner(device), ())
            state = self._state.get(device, ())
            return Kept(optimizer, state, tuple(self._levels.levelled))

    def check(self, kept: Kept) -> None:
        """Refuse what could not be kept.

        Raises
        ------
        StateRefused
            If it is to be relayed, and the next device could not start from it.
        """
        if self.optimizer_state == "relay" and self._half is not None:
            check_relayed(kept.optimizer, self._half)

    def keep(self, device: str, kept: Kept) -> None:
        """Take what `device` left at the end of a turn, and what `check` let pass."""
        with self._lock:
            # older devices send it whatever their ticket says
            if self.keeps_optimizer:
                self._optimizer[self._optimizer_owner(device)] = kept.optimizer
                self._has_failed = False
            # most devices leave none, and may be many
            self._state.pop(device, None)
            if kept.state:
                self._state[device] = kept.state
            self._levels.add(kept.levels, kept.no_levels)

    def note_failure(self, kept: Kept, has_trained: bool) -> bool:
        """Note that a turn failed, and drop relayed optimizer state that may be why.

        A device may have left it on purpose, and all that start from it would fail.
        State with very large entries is dropped at the first failure, and other state
        at the second in a row of devices that had begun to train: one that fails by
        itself, or is not there, costs the others nothing.

        Parameters
        ----------
        kept : Kept
            What the turn started from.
        has_trained : bool
            Whether the device made a step.

        Returns
        -------
        bool
            Whether state was dropped; not if another device has left its own since.
        """
        if self.optimizer_state != "relay" or not kept.optimizer:
            return False
        # unchecked, a few bytes may claim any size
        may_stay = self._half is None or is_usual(kept.optimizer)
        with self._lock:
            if self._optimizer.get(_RELAYED) is not kept.optimizer:
                return False
            if may_stay and not (has_trained and self._has_failed):
                self._has_failed |= has_trained
                return False
            del self._optimizer[_RELAYED]
            self._has_failed = False
            return True

    def state_dict(self) -> dict[str, Any]:
        """Return all that is kept, tensors as wire bytes."""
        with self._lock:
            return {
                "optimizer": _to_bytes(self._optimizer),
                "state": _to_bytes(self._state),
                "levels": self._levels.state_dict(),
            }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Keep what `state_dict` gave.

        Raises
        ------
        Exception
            If it has another form.
        """
        with self._lock:
            self._optimizer = _from_bytes(state["optimizer"])
            self._state = _from_bytes(state["state"])
            # an earlier version wrote none
            self._levels.load_state_dict(state.get("levels", {}))


def _to_bytes(kept: _TensorsByOwner) -> dict[str, list[bytes]]:
    return {
        owner: [tensor.SerializeToString() for tensor in tensors]
        for owner, tensors in kept.items()
    }


def _from_bytes(kept: Mapping[str, Sequence[bytes]]) -> _TensorsByOwner:
    return {
        owner: tuple(pb.Tensor.FromString(tensor) for tensor in tensors)
        for owner, tensors in kept.items()
    }
