"""A device's turn as a ClientApp goes through it: in one message."""

from collections.abc import Iterator, Mapping
from itertools import count, islice
from types import TracebackType

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from torch import Tensor, nn

from flwr_splitfc.apps.local_session import LocalSession
from flwr_splitfc.apps.returned import pair_of
from flwr_splitfc.defence import SecretNoise
from flwr_splitfc.exchange.device.pipeline import LabelledBatches
from flwr_splitfc.exchange.device.session import Session
from flwr_splitfc.exchange.protocol.frames import FRAME_KEY, frame_record
from flwr_splitfc.exchange.protocol.seeds import derive_seed
from flwr_splitfc.model.structures import Structure, on_device


class ClientTurn:
    """The work that one message asks of a device, the server half at the other end.

    Enter it, go through `batches` with `server`, set `metrics`, and `reply`.

    Parameters
    ----------
    message : Message
    server : Session or LocalSession
        Gives losses and predictions.
    model : nn.Module
        The device half, or the whole model for a `LocalSession`.
    seed : int
        The turn's. Each step draws its batch and what else is random from (seed,
        step).
    noise : SecretNoise, optional
        Of the features. Each step begins with a new key.

    Attributes
    ----------
    metrics : dict of str to int or float
        To be set in the last line of the ``with`` block.
    """

    def __init__(
        self,
        message: Message,
        server: Session | LocalSession,
        model: nn.Module,
        seed: int,
        noise: SecretNoise | None = None,
    ) -> None:
        self.server = server
        self.metrics: dict[str, int | float] = {}
        self._message = message
        self._device = _device_of(model)
        self._purpose = "train" if model.training else "evaluate"
        self._seed = seed
        self._noise = noise or SecretNoise()
        # of metrics, each times its batch's weight, and of these weights
        self._sums: dict[str, float] = {}
        self._weights: dict[str, float] = {}

    def __enter__(self) -> "ClientTurn":
        self.server.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        self.server.__exit__(kind, error, trace)
        return self._is_interrupted(error)

    def _is_interrupted(self, error: BaseException | None) -> bool:
        """Whether the turn goes on with another message: not when it has but one."""
        return False

    def batches(
        self, batches: LabelledBatches, steps: int | None = None
    ) -> Iterator[tuple[Structure, Tensor]]:
        """Yield the batches of the turn's steps, on the model's device.

        Parameters
        ----------
        batches : iterable of (Tensor, Tensor)
            Inputs, or structures of tensors, and labels.
        steps : int, optional
            How many; where there are fewer, they start over. Default: one pass.

        Raises
        ------
        ValueError
            If there is none.
        """
        drawn = iter(batches) if steps is None else islice(_repeated(batches), steps)
        for number in count(1):
            torch.manual_seed(derive_seed(self._seed, "step", number))
            self._noise.begin()
            batch = next(drawn, None)
            if batch is None:
                break
            if self._begin_step(number):
                x, y = pair_of(batch)
                yield on_device(x, self._device), y.to(self._device)
        if number == 1:
            raise ValueError(
                f"load_data(context) gave no batches to {self._purpose} on "
                "(an empty share, or drop_last)"
            )

    def _begin_step(self, number: int) -> bool:
        """Get ready for a step, counted from 1; return whether it has to be made."""
        return True

    def add(self, metrics: Mapping[str, float], weight: int) -> None:
        """Add a batch's means over so many rows or labels to those of the turn."""
        # a mean over nothing is no number
        if weight == 0:
            return
        for key, value in metrics.items():
            self._sums[key] = self._sums.get(key, 0.0) + value * weight
            self._weights[key] = self._weights.get(key, 0.0) + weight

    def reply(self, arrays: ArrayRecord | None = None) -> Message:
        """Return the reply to the message: metrics, and `arrays` if given.

        The session's last frame goes with it: what the device leaves for its next turn
        arrives together with the arrays, or not at all.
        """
        return Message(self._outcome(arrays), reply_to=self._message)

    def _outcome(self, arrays: ArrayRecord | None) -> RecordDict:
        means = {key: value / self._weights[key] for key, value in self._sums.items()}
        content = RecordDict({"metrics": MetricRecord({**self.metrics, **means})})
        if arrays is not None:
            content["arrays"] = arrays
        if self.server.closing is not None:
            content[FRAME_KEY] = frame_record(self.server.closing)
        return content


def _device_of(model: nn.Module) -> torch.device:
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def _repeated(batches: LabelledBatches) -> Iterator[tuple[Structure, Tensor]]:
    for passes in count():
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty and passes:
            raise ValueError(
                f"load_data gave a {type(batches).__name__}, which can be gone through "
                "only once, and steps-per-turn is more than its batches: return a "
                "DataLoader or a list"
            )
        if empty:
            return
