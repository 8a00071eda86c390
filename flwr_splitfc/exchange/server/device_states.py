"""What devices keep between turns, held by the server: optimizer state, and anything else they name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Literal, get_args

from flwr_splitfc.exchange.protocol import split_pb2 as pb

OptimizerState = Literal["relay", "per-device", "fresh"]
_RELAYED = ""  # no device has this name


@dataclass(frozen=True)
class Kept:
    """Tensors as they came off the wire; the server only keeps them."""

    optimizer: Sequence[pb.Tensor] = ()
    state: Sequence[pb.Tensor] = ()


class DeviceStates:
    """Hands each device's next turn what the last one left.

    Parameters
    ----------
    optimizer_state : "relay", "per-device" or "fresh"
        Whose optimizer state a turn starts from: that of the turn before, on whichever
        device (one optimizer follows the device half from device to device); the
        device's own last one; none. The rest of a device's state is always its own.
    """

    def __init__(self, optimizer_state: OptimizerState) -> None:
        if optimizer_state not in get_args(OptimizerState):
            raise ValueError(
                f"optimizer_state is {optimizer_state!r}, wanted one of {get_args(OptimizerState)}"
            )
        self.optimizer_state = optimizer_state
        self._lock = Lock()
        self._optimizer: dict[str, Sequence[pb.Tensor]] = {}
        self._state: dict[str, Sequence[pb.Tensor]] = {}

    def _owner(self, device: str) -> str:
        return _RELAYED if self.optimizer_state == "relay" else device

    def of(self, device: str) -> Kept:
        """What `device` gets at the start of its next turn."""
        with self._lock:
            return Kept(
                self._optimizer.get(self._owner(device), ()),
                self._state.get(device, ()),
            )

    def state_dict(self) -> dict[str, dict[str, list[bytes]]]:
        """All that is kept, as wire bytes."""
        with self._lock:
            both = {"optimizer": self._optimizer, "state": self._state}
            return {
                what: {
                    owner: [tensor.SerializeToString() for tensor in tensors]
                    for owner, tensors in kept.items()
                }
                for what, kept in both.items()
            }

    def load_state_dict(
        self, state: Mapping[str, Mapping[str, Sequence[bytes]]]
    ) -> None:
        """Keep what `state_dict` gave."""
        with self._lock:
            for what, kept in (("optimizer", self._optimizer), ("state", self._state)):
                kept.clear()
                for owner, tensors in state[what].items():
                    kept[owner] = tuple(
                        pb.Tensor.FromString(tensor) for tensor in tensors
                    )

    def keep(self, device: str, kept: Kept) -> None:
        """Take what `device` left at the end of a turn."""
        with self._lock:
            if self.optimizer_state != "fresh":
                self._optimizer[self._owner(device)] = kept.optimizer
            self._state[device] = kept.state
