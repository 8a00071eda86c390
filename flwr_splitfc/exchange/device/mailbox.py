"""Frames in Flower messages: for devices that cannot reach the ServerApp by any connection of their own.

Flower's messages go from the server to a device and back, and a device's process does
not outlive one. So a turn becomes a chain of them: each brings the answer to a device's
frame and takes its next frame back. In between, the turn lies in the node's context;
`StoredTurn` is what lies there.
"""

from collections.abc import Mapping
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from torch import Tensor, nn

from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.errors import (
    TicketExpired,
    error_from,
)
from flwr_splitfc.exchange.protocol.frames import frame_of, raw_array
from flwr_splitfc.exchange.protocol.tensors import (
    optimizer_tensors,
    pack_tensors,
    restore_optimizer,
    unpack_tensors,
)

TURN_KEY = "split-turn"
_COUNT = "count."


class NotAnswered(Exception):
    """A frame was asked whose answer is a message away; not an error, and not for users."""

    def __init__(self, frame: pb.DeviceFrame) -> None:
        super().__init__(f"frame {frame.number} is to be sent")
        self.frame = frame


class Mailbox:
    """The device's end of a turn that travels in messages: knows the answers of one step, and asks for the next.

    Parameters
    ----------
    message : Message
        With the server's last frame: `Opened`, or the answer to this device's last one.
    stored : StoredTurn
        With the step's answer before that, if there is one.

    Attributes
    ----------
    closing : DeviceFrame or None
        The device's last frame, which goes with its reply to the strategy.
    """

    def __init__(self, message: Message, stored: "StoredTurn") -> None:
        self.answer = pb.ServerFrame.FromString(frame_of(message))
        if self.answer.WhichOneof("kind") == "refused":
            raise error_from(self.answer.refused)
        self._answers = {
            answer.number: answer for answer in (*stored.answers, self.answer)
        }
        stored.answers = (
            [self.answer] if self.answer.WhichOneof("kind") == "output" else []
        )
        self.number = max(min(self._answers) - 1, 0)
        self.closing: pb.DeviceFrame | None = None
        self.uplink_bytes = 0
        self.downlink_bytes = 0
        self.reconnects = 0

    def open(self) -> pb.Opened:
        """What earlier turns left; nothing in a message after the first."""
        return self.answer.opened

    def ask(self, frame: pb.DeviceFrame) -> pb.ServerFrame:
        """The answer to a frame, if it is one that came.

        Raises
        ------
        NotAnswered
            It has to be asked for.
        """
        self.number += 1
        frame.number = self.number
        self.uplink_bytes += frame.ByteSize()
        if frame.WhichOneof("kind") == "close":
            self.closing = frame
            return pb.ServerFrame(number=frame.number, closed=pb.Closed())
        if frame.number not in self._answers:
            raise NotAnswered(frame)
        self.downlink_bytes += self._answers[frame.number].ByteSize()
        return self._answers[frame.number]

    def finish(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


class StoredTurn:
    """A turn between two messages, in the node's context.

    Parameters
    ----------
    context : Context
    message : Message
    frames_per_step : int (default: 1)
    """

    def __init__(
        self, context: Context, message: Message, frames_per_step: int = 1
    ) -> None:
        self._frames_per_step = frames_per_step
        self._state = context.state
        self._number = pb.ServerFrame.FromString(frame_of(message)).number
        self._key = str(
            message.content.config_records["split-ticket"]["token"]
        ).partition(".")[0]
        if self.begun and self._read().get("session") != self._key:
            raise TicketExpired(
                "this node has no such turn: it was started again, or got another one meanwhile"
            )

    @property
    def begun(self) -> bool:
        """Whether an earlier message brought the turn here."""
        return self._number > 0

    @property
    def done(self) -> int:
        """Steps that are behind the turn, the one of the last answer not among them."""
        return max(self._number - 1, 0) // self._frames_per_step

    @property
    def answers(self) -> list[pb.ServerFrame]:
        """Those to the frames of a step that is not over."""
        record = (
            self._state.array_records.get(TURN_KEY + "-answers", ArrayRecord())
            if self.begun
            else ArrayRecord()
        )
        return [pb.ServerFrame.FromString(array.data) for array in record.values()]

    @answers.setter
    def answers(self, answers: list[pb.ServerFrame]) -> None:
        record = ArrayRecord(
            {
                str(answer.number): raw_array(answer.SerializeToString())
                for answer in answers
            }
        )
        self._state[TURN_KEY + "-answers"] = record

    @property
    def arrays(self) -> ArrayRecord:
        """The device half as the turn's first message brought it."""
        return self._state.array_records[TURN_KEY + "-start"]

    @arrays.setter
    def arrays(self, arrays: ArrayRecord) -> None:
        self._state[TURN_KEY + "-start"] = arrays

    def save(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        counts: Mapping[str, float],
        kept: Mapping[str, Tensor],
    ) -> None:
        """Put away all that the next step starts from."""
        parts = {
            "model": dict(model.state_dict()),
            "optimizer": optimizer_tensors(optimizer) if optimizer else {},
            "kept": dict(kept),
        }
        self._state[TURN_KEY + "-tensors"] = ArrayRecord(
            {key: raw_array(_pack(part)) for key, part in parts.items()}
        )
        self._state[TURN_KEY] = ConfigRecord(
            {
                "session": self._key,
                **{f"count.{k}": float(v) for k, v in counts.items()},
            }
        )

    def restore(
        self, model: nn.Module, optimizer: torch.optim.Optimizer | None
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Take it up again: the counts and what else is kept."""
        parts = {
            key: _unpack(array.data)
            for key, array in self._state.array_records[TURN_KEY + "-tensors"].items()
        }
        model.load_state_dict(parts["model"])
        if optimizer is not None:
            restore_optimizer(optimizer, parts["optimizer"])
        counts = {
            key.removeprefix(_COUNT): value
            for key, value in self._read().items()
            if key.startswith(_COUNT)
        }
        return counts, parts["kept"]  # type: ignore[return-value]

    def clear(self) -> None:
        """The turn is over."""
        for key in ("", "-start", "-tensors", "-answers"):
            self._state.pop(TURN_KEY + key, None)

    def _read(self) -> ConfigRecord:
        return self._state.config_records.get(TURN_KEY, ConfigRecord())


def _pack(tensors: dict[str, Any]) -> bytes:
    return pb.Opened(state=pack_tensors(tensors)).SerializeToString()


def _unpack(data: bytes) -> dict[str, Tensor]:
    return unpack_tensors(pb.Opened.FromString(data).state)
