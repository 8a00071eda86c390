"""A device's turn as a ClientApp goes through it: in one message, or step by step over many."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import count, islice
from types import TracebackType

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from torch import Tensor, nn

from flwr_splitfc.exchange.device.mailbox import Mailbox, NotAnswered, StoredTurn
from flwr_splitfc.exchange.device.session import Session, connect
from flwr_splitfc.exchange.protocol.frames import (
    FRAME_KEY,
    frame_record,
    frame_reply,
    has_frame,
)
from flwr_splitfc.exchange.protocol.seeds import derive_seed
from flwr_splitfc.exchange.protocol.ticket import Ticket, has_ticket
from flwr_splitfc.model import LossFn

Batches = Iterable[tuple[Tensor, Tensor]]

_SUM = "sum."


class ClientTurn:
    """What one message asks of a device, with the server half at the other end.

    Enter it, go through `batches` with `server`, and `reply`. Where frames travel in
    messages, the body is left at the first frame without an answer, and taken up again
    with the next message from the state before that step.

    Parameters
    ----------
    message : Message
    context : Context
    model : nn.Module
        The device half, or the whole model for a message without a ticket.
    optimizer : torch.optim.Optimizer, optional
    loss_fn : callable, optional
        For training without a ticket.
    seed : int
        Of the turn. Each step draws its batch and what else is random from (seed,
        step).

    Attributes
    ----------
    server : Session or Unsplit
        Gives losses and predictions.
    metrics : dict
        To be set in the body's last line.
    """

    def __init__(
        self,
        message: Message,
        context: Context,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        loss_fn: LossFn | None,
        seed: int,
    ) -> None:
        self.metrics: dict[str, int | float] = {}
        self._message, self._model, self._optimizer, self._seed = (
            message,
            model,
            optimizer,
            seed,
        )
        self._device = next(model.parameters(), torch.empty(0)).device
        self._sums: dict[str, float] = {}
        ticket = Ticket.from_message(message) if has_ticket(message) else None
        self._mailbox: Mailbox | None = None
        self._stored: StoredTurn | None = None
        if ticket is not None and has_frame(message):
            frames_per_step = (
                2 if ticket.output_codec and ticket.purpose == "train" else 1
            )
            self._stored = StoredTurn(context, message, frames_per_step)
            self._mailbox = Mailbox(message, self._stored)
        self._next: Message | None = None
        self.server: Session | Unsplit
        if ticket is None:
            self.server = Unsplit(loss_fn)
        elif self._mailbox is not None:
            self.server = Session(ticket, self._mailbox, optimizer=optimizer)
        else:
            self.server = connect(message, context, optimizer=optimizer)

    def __enter__(self) -> "ClientTurn":
        self.server.__enter__()
        if self._stored is not None and self._stored.begun:
            counts, kept = self._stored.restore(self._model, self._optimizer)
            self._sums = {
                key.removeprefix(_SUM): value
                for key, value in counts.items()
                if key.startswith(_SUM)
            }
            assert isinstance(self.server, Session)
            self.server.resume(counts, kept)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        self.server.__exit__(kind, error, trace)
        if isinstance(error, NotAnswered):
            self._next = frame_reply(self._message, error.frame)
        return self._next is not None

    def batches(
        self, batches: Batches, steps: object = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of the turn that are not behind it, on the model's device; `steps` of them if given."""
        drawn = (
            iter(batches)
            if steps is None
            else islice(_forever(batches), int(str(steps)))
        )
        for number in count(1):
            torch.manual_seed(derive_seed(self._seed, "step", number))
            if (batch := next(drawn, None)) is None:
                return
            if self._stored is not None:
                if number <= self._stored.done:
                    continue
                self._save(self._stored)
            yield batch[0].to(self._device), batch[1].to(self._device)

    def _save(self, stored: StoredTurn) -> None:
        assert isinstance(self.server, Session)
        sums = {_SUM + key: value for key, value in self._sums.items()}
        stored.save(
            self._model,
            self._optimizer,
            {**self.server.counts(), **sums},
            self.server.state,
        )

    def add(self, metrics: Mapping[str, float], rows: int) -> None:
        """Add a batch's means to those of the turn."""
        for key, value in metrics.items():
            self._sums[key] = self._sums.get(key, 0.0) + value * rows

    def reply(self, arrays: ArrayRecord | None = None) -> Message:
        """The reply to the message: the turn's outcome, or its next frame."""
        if self._next is not None:
            return self._next
        rows = max(self.metrics.get("num-examples", 0), 1)
        means = {key: value / rows for key, value in self._sums.items()}
        content = RecordDict({"metrics": MetricRecord({**self.metrics, **means})})
        if arrays is not None:
            content["arrays"] = arrays
        if (
            self._mailbox is not None
            and self._mailbox.closing is not None
            and self._stored is not None
        ):
            content[FRAME_KEY] = frame_record(self._mailbox.closing)
            self._stored.clear()
        return Message(content, reply_to=self._message)


def first_arrays(message: Message, context: Context) -> ArrayRecord:
    """The model that a turn starts from, which only its first message brings."""
    arrays = {
        key: record
        for key, record in message.content.array_records.items()
        if key != FRAME_KEY
    }
    if not has_frame(message):
        return next(iter(arrays.values()))
    stored = StoredTurn(context, message)
    if arrays:
        stored.arrays = next(iter(arrays.values()))
    return stored.arrays


class Unsplit:
    """What a session is where the whole model is at hand: the loss is computed here."""

    def __init__(self, loss_fn: LossFn | None) -> None:
        self._loss_fn = loss_fn
        self._rows, self._steps = 0, 0
        self._loss_sum: float | None = None

    def __enter__(self) -> "Unsplit":
        return self

    def __exit__(self, *error: object) -> None:
        return

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """As `Session.loss`, of the whole model's outputs."""
        assert self._loss_fn is not None  # SplitClientApp has seen to it
        loss = self._loss_fn(outputs, labels)
        self._loss_sum = (self._loss_sum or 0.0) + loss.item() * len(outputs)
        self.predict(outputs)
        return loss

    def predict(self, outputs: Tensor) -> Tensor:
        """As `Session.predict`: the outputs themselves."""
        self._rows += len(outputs)
        self._steps += 1
        return outputs

    def metrics(self) -> dict[str, int | float]:
        """As `Session.metrics`, without traffic."""
        trained = (
            {}
            if self._loss_sum is None
            else {"train_loss": self._loss_sum / max(self._rows, 1)}
        )
        return {"num-examples": self._rows, "steps": self._steps, **trained}


def _forever(batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise ValueError("load_data gave no batch to train on")
