"""A device's turn that goes from message to message, one frame in each.

The body of the turn is left at the first frame without an answer, and taken up again
with the next message, from the state before that step.
"""

import torch
from flwr.app import ArrayRecord, Context, Message
from torch import nn

from flwr_splitfc.apps.client_turn import ClientTurn
from flwr_splitfc.defence import SecretNoise
from flwr_splitfc.exchange.device.mailbox import Mailbox, NotAnswered
from flwr_splitfc.exchange.device.session import Session
from flwr_splitfc.exchange.device.stored_turn import StoredTurn
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.frames import frame_reply, server_frame
from flwr_splitfc.exchange.protocol.records import without_prefix
from flwr_splitfc.exchange.protocol.ticket import Ticket, has_ticket

_SUM_PREFIX = "sum."
_WEIGHT_PREFIX = "weight."


class ClientTurnByMessages(ClientTurn):
    """The part of a turn that one message asks of a device.

    Parameters
    ----------
    message : Message
        With a ticket for frames in messages.
    context : Context
        The node's, where the turn waits for its next message.
    model : nn.Module
        The device half.
    optimizer : torch.optim.Optimizer or None
        The device half's, in training.
    seed : int
        The turn's, as for `ClientTurn`.
    noise : SecretNoise
        As for `ClientTurn`. A step that is made again, to take the answer to what it
        sent, has the key that it had.
    """

    server: Session

    def __init__(
        self,
        message: Message,
        context: Context,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        seed: int,
        noise: SecretNoise,
    ) -> None:
        ticket = Ticket.from_message(message)
        self._stored = StoredTurn(context, message)
        mailbox = Mailbox(message, self._stored)
        kept = server_frame(message).kept
        session = Session(ticket, mailbox, optimizer=optimizer, kept=kept)
        # 0 where the turn begins
        self._made_again = self._stored.step
        super().__init__(message, session, model, seed, noise)
        self._model = model
        self._unanswered: pb.DeviceFrame | None = None

    def __enter__(self) -> "ClientTurnByMessages":
        super().__enter__()
        if self._stored.begun:
            self._restore()
        return self

    def _is_interrupted(self, error: BaseException | None) -> bool:
        if not isinstance(error, NotAnswered):
            return False
        self._unanswered = error.frame
        return True

    def _begin_step(self, number: int) -> bool:
        if number < self._made_again:
            return False
        if number == self._made_again:
            # its features went up with this noise, and do not go up again
            self._noise.begin(self._stored.noise_key)
        # the step starts anew from here if its answer is a message away
        self._save(number)
        return True

    def reply(self, arrays: ArrayRecord | None = None) -> Message:
        """Return the reply to the message: the next frame, or the turn's outcome."""
        if self._unanswered is not None:
            self._stored.note_sent(self._unanswered.number)
            return frame_reply(self._message, self._unanswered)
        self._stored.clear()
        return super().reply(arrays)

    def _save(self, step: int) -> None:
        counts = self.server.counts()
        for key, value in self._sums.items():
            counts[_SUM_PREFIX + key] = value
            counts[_WEIGHT_PREFIX + key] = self._weights[key]
        self._stored.save(
            step,
            self._noise.key,
            self._model,
            self.server.optimizer_state(),
            counts,
            self.server.state,
        )

    def _restore(self) -> None:
        optimizer_state, counts, kept = self._stored.restore(self._model)
        self.server.resume(counts, optimizer_state, kept)
        self._sums = without_prefix(_SUM_PREFIX, counts)
        self._weights = without_prefix(_WEIGHT_PREFIX, counts)


def first_arrays(message: Message, context: Context) -> ArrayRecord:
    """Return the model that a turn starts from.

    Only the turn's first message brings it; between messages it lies in the context.
    """
    brought = list(message.content.array_records.values())
    if not has_ticket(message) or not Ticket.from_message(message).is_for_messages:
        return brought[0]
    stored = StoredTurn(context, message)
    if brought:
        stored.arrays = brought[0]
    return stored.arrays
