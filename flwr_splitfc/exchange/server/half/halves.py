"""Which server half a session trains: the one that all share, or a copy of its own."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import cycle
from logging import getLogger
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from flwr_splitfc.exchange.protocol.seeds import derive_seed
from flwr_splitfc.exchange.server.half.half_trainer import HalfTrainer
from flwr_splitfc.model.structures import shapes_of

logger = getLogger("flwr")


class Halves(ABC):
    """Hands server halves to training sessions and takes them back.

    Parameters
    ----------
    half : HalfTrainer
        The run's server half: what evaluation sees, and what is left at the end.
    """

    def __init__(self, half: HalfTrainer) -> None:
        self.half = half

    @property
    def steps_at_once(self) -> int:
        """How many steps it is of use to begin at the same time, at least."""
        return self.half.merge_steps

    @abstractmethod
    def take(self, device: str, server_round: int) -> HalfTrainer:
        """Return the half for a device that opens a session."""

    @abstractmethod
    def give_back(self, half: HalfTrainer, rows: int) -> None:
        """Take a half back whose device has replied, trained on `rows` samples."""

    @abstractmethod
    def end_round(self) -> None:
        """End a round: all replies are in, or too late."""


class SharedHalf(Halves):
    """One half for all sessions.

    What a device teaches it stays, also when the device fails later.
    """

    def take(self, device: str, server_round: int) -> HalfTrainer:
        return self.half

    def give_back(self, half: HalfTrainer, rows: int) -> None:
        return

    def end_round(self) -> None:
        self.half.apply_begun()


class CopiedHalves(Halves):
    """A copy of the half for each session, with an optimizer of its own.

    A round ends with the average of the copies that were given back, as in FedAvg:

        w = (n_1 w_1 + ... + n_K w_K) / (n_1 + ... + n_K)

    for copies with the weights w_k, trained on n_k samples. Copies of sessions whose
    device failed, or replied too late, are dropped. Sums run in float64, so the order
    in which replies arrive does not show in float32 weights.

    What has no mean stays as it is in `half`: buffers whose shape a copy has changed,
    such as a cache that grows with the longest sequence, and what is no tensor.

    Parameters
    ----------
    half : HalfTrainer
    devices : sequence of torch.device, optional
        Where the copies train, one after another: those on several GPUs at the same
        time. Default: where `half` is.
    """

    def __init__(self, half: HalfTrainer, devices: Sequence[torch.device] = ()) -> None:
        super().__init__(half)
        self._lock = Lock()
        self._devices = cycle(devices or [half.device])
        self._most_at_once = max(len(set(devices)), 1)
        self._rows = 0
        self._sums: dict[str, Tensor] = {}
        self._changed: set[str] = set()
        self._left_out: set[str] = set()
        self._any_stepped = False
        self._warned = False

    @property
    def steps_at_once(self) -> int:
        """One on each device."""
        return self._most_at_once

    def take(self, device: str, server_round: int) -> HalfTrainer:
        # a seed of its own, or all copies would drop out the same units
        seed = derive_seed(self.half.seed, device, server_round)
        with self._lock:
            torch_device = next(self._devices)
        return self.half.copy(
            seed, torch_device=torch_device, beside_others=self._most_at_once > 1
        )

    def give_back(self, half: HalfTrainer, rows: int) -> None:
        with self._lock:
            self._rows += rows
            if half.steps >= half.accumulate_steps:
                self._any_stepped = True
            after = _entries(half.model)
            for name, value in _entries(self.half.model).items():
                self._add(name, value, after.get(name), rows)

    def _add(self, name: str, before: Any, value: Any, rows: int) -> None:
        """Add an entry of a copy to the sum of all copies'."""
        if not isinstance(before, Tensor) or name in self._left_out:
            return
        if not isinstance(value, Tensor) or value.shape != before.shape:
            self._leave_out(name, before, value)
            return
        value = value.to(self.half.device)
        # a sum of frozen weights or of large integers may be rounded
        if not torch.equal(value, before):
            self._changed.add(name)
        weighted = _as_wide(value) * rows
        if name in self._sums:
            weighted = self._sums[name] + weighted
        self._sums[name] = weighted

    def _leave_out(self, name: str, before: Tensor, value: Any) -> None:
        self._left_out.add(name)
        logger.warning(
            "%r of the server half stays as it is, of shape %s: a device's copy has it "
            "of shape %s, and there is no mean of both",
            name,
            tuple(before.shape),
            shapes_of(value),
        )

    @torch.no_grad()
    def end_round(self) -> None:
        with self._lock:
            # where no device has replied, the half stays as it is
            if self._rows:
                self._take_mean()
                self._warn_if_none_stepped()
            self._rows = 0
            self._sums = {}
            self._changed = set()
            self._any_stepped = False

    def _take_mean(self) -> None:
        for name, value in _entries(self.half.model).items():
            if name not in self._changed - self._left_out:
                continue
            mean = self._sums[name] / self._rows
            # counts of batches are integers
            is_whole = not (value.is_floating_point() or value.is_complex())
            value.copy_(mean.round() if is_whole else mean)

    def _warn_if_none_stepped(self) -> None:
        if self._any_stepped or self._warned:
            return
        self._warned = True
        logger.warning(
            "The server half learns nothing: accumulate_steps is %d, no device had as "
            "many mini-batches in its turn, and a copy's gradients end with the turn",
            self.half.accumulate_steps,
        )


def _entries(model: nn.Module) -> dict[str, Any]:
    """Return the entries of a state dict, by their names without compilation.

    A copy of what `torch.compile` makes may have lost it.
    """
    return {
        name.replace("_orig_mod.", ""): value
        for name, value in model.state_dict().items()
    }


def _as_wide(value: Tensor) -> Tensor:
    return value.to(torch.complex128) if value.is_complex() else value.double()
