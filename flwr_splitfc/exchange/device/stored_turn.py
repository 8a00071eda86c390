"""A turn that waits in the node's context for its next message.

Four records of the context hold it, under keys that start with "split-turn":

======================  ==========================================================
``split-turn``          the session's id, the number of the frame that was sent last,
                        the next step's number, its noise's key, and the turn's counts
``split-turn-start``    the device half as the turn's first message brought it
``split-turn-tensors``  model, optimizer and what else is kept, before the next step
``split-turn-answers``  the server's answers in a step that is not over
======================  ==========================================================
"""

from collections.abc import Mapping
from typing import cast

from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from torch import Tensor, nn

from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.frames import raw_array, server_frame
from flwr_splitfc.exchange.protocol.records import without_prefix
from flwr_splitfc.exchange.protocol.split_errors import ProtocolError, TicketExpired
from flwr_splitfc.exchange.protocol.tensors import pack_tensors, unpack_tensors
from flwr_splitfc.exchange.protocol.ticket import Ticket

_TURN_KEY = "split-turn"
_START_KEY = _TURN_KEY + "-start"
_TENSORS_KEY = _TURN_KEY + "-tensors"
_ANSWERS_KEY = _TURN_KEY + "-answers"

_SESSION = "session"
_SENT = "sent"
_STEP = "step"
_NOISE_KEY = "noise-key"
_COUNT_PREFIX = "count."


class StoredTurn:
    """A turn between two messages, in the node's context.

    Parameters
    ----------
    context : Context
        The node's.
    message : Message
        With a ticket, and the server's last frame, if it sent one.

    Raises
    ------
    TicketExpired
        If the message goes on with a turn that is not the one in the context.
    ProtocolError
        If it does not answer the frame that was sent last, or does so again.
    """

    def __init__(self, context: Context, message: Message) -> None:
        self._state = context.state
        self._session = Ticket.from_message(message).session_id
        self._number = server_frame(message).number
        if self.begun:
            self._check_turn()

    @property
    def begun(self) -> bool:
        """Whether an earlier message brought the turn here."""
        return self._number > 0

    def _check_turn(self) -> None:
        record = self._record()
        if record.get(_SESSION) != self._session:
            raise TicketExpired(
                "this node has no such turn: "
                "it was started again, or got another one meanwhile"
            )
        sent = record.get(_SENT)
        if sent != self._number:
            waiting = "none waits" if sent is None else f"frame {sent!r} waits"
            raise ProtocolError(
                f"the server answered frame {self._number}, and {waiting} for an answer"
            )

    def note_sent(self, number: int) -> None:
        """Note the number of the frame that waits for its answer."""
        self._record()[_SENT] = number

    @property
    def answers(self) -> list[pb.ServerFrame]:
        """Answers to earlier frames of a step that is not over."""
        if not self.begun:
            return []
        record = self._state.array_records.get(_ANSWERS_KEY, ArrayRecord())
        return [pb.ServerFrame.FromString(array.data) for array in record.values()]

    @answers.setter
    def answers(self, answers: list[pb.ServerFrame]) -> None:
        record = ArrayRecord()
        for answer in answers:
            record[str(answer.number)] = raw_array(answer.SerializeToString())
        self._state[_ANSWERS_KEY] = record

    @property
    def step(self) -> int:
        """The step that `save` was before, counted from 1; 0 if the turn begins."""
        return cast(int, self._record()[_STEP]) if self.begun else 0

    @property
    def noise_key(self) -> bytes:
        """The key of that step's noise, which no message takes from the device."""
        return cast(bytes, self._record()[_NOISE_KEY])

    @property
    def arrays(self) -> ArrayRecord:
        """The device half as the turn's first message brought it."""
        return self._state.array_records[_START_KEY]

    @arrays.setter
    def arrays(self, arrays: ArrayRecord) -> None:
        self._state[_START_KEY] = arrays

    def save(
        self,
        step: int,
        noise_key: bytes,
        model: nn.Module,
        optimizer_state: Mapping[str, Tensor],
        counts: Mapping[str, float],
        kept: Mapping[str, Tensor],
    ) -> None:
        """Put away all that the next step starts from, a frame of which is then sent.

        Parameters
        ----------
        step : int
            Its number.
        noise_key : bytes
            Of its noise.
        model : nn.Module
            The device half.
        optimizer_state : mapping of str to Tensor
            As `Session.optimizer_state` returns it.
        counts : mapping of str to float
            As `Session.counts` returns them, and whatever else is counted.
        kept : mapping of str to Tensor
            The session's `state`.
        """
        tensors = ArrayRecord()
        tensors["model"] = raw_array(_pack(model.state_dict()))
        tensors["optimizer"] = raw_array(_pack(optimizer_state))
        tensors["kept"] = raw_array(_pack(kept))
        self._state[_TENSORS_KEY] = tensors

        # no frame waits any more: an answer is taken once
        record = ConfigRecord({_SESSION: self._session})
        record[_STEP] = step
        record[_NOISE_KEY] = noise_key
        for name, value in counts.items():
            record[_COUNT_PREFIX + name] = float(value)
        self._state[_TURN_KEY] = record

    def restore(
        self, model: nn.Module
    ) -> tuple[dict[str, Tensor], dict[str, float], dict[str, Tensor]]:
        """Take up what `save` put away.

        Parameters
        ----------
        model : nn.Module
            Gets the entries that were saved.

        Returns
        -------
        tuple of dict of str to Tensor, dict of str to float, and dict of str to Tensor
            The optimizer's state, the counts, and what else was kept.
        """
        tensors = self._state.array_records[_TENSORS_KEY]
        model.load_state_dict(_unpack(tensors["model"].data))
        optimizer_state = _unpack(tensors["optimizer"].data)
        counts = without_prefix(_COUNT_PREFIX, self._record())
        return optimizer_state, counts, _unpack(tensors["kept"].data)

    def clear(self) -> None:
        """Remove the turn from the context, once it is over."""
        for key in (_TURN_KEY, _START_KEY, _TENSORS_KEY, _ANSWERS_KEY):
            self._state.pop(key, None)

    def _record(self) -> ConfigRecord:
        return self._state.config_records.get(_TURN_KEY, ConfigRecord())


def _pack(tensors: Mapping[str, Tensor]) -> bytes:
    return pb.Kept(state=pack_tensors(tensors)).SerializeToString()


def _unpack(data: bytes) -> dict[str, Tensor]:
    return unpack_tensors(pb.Kept.FromString(data).state)
