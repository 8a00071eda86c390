"""A device whose frames travel in messages, at a server that answers them as it likes.

What it may gain is two releases with the same noise: they differ by their features alone.
"""

from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from torch import Tensor, nn

from flwr_splitfc import SplitClientApp, cut_codec
from flwr_splitfc.codec import PayloadError
from flwr_splitfc.exchange import ProtocolError
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.frames import frame_field, frame_of
from flwr_splitfc.exchange.protocol.records import with_fields
from flwr_splitfc.exchange.protocol.ticket import Ticket
from tests.halves import batches, seeded
from tests.local_grid import LocalGrid

ROWS, WIDTH = 4, 16
BATCHES = [(x[:ROWS].flatten(1), y[:ROWS]) for x, y in batches(4)]
TICKET = Ticket(
    address="",
    token="id.secret",
    purpose="train",
    device="0",
    server_round=1,
    seed=3,
    codec=cut_codec("float32").config(),
)


class Half(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(BATCHES[0][0].shape[1], WIDTH), nn.ReLU())


class Device:
    """A node that clips its features and makes them noisy, and its app."""

    def __init__(self) -> None:
        self.app = SplitClientApp(
            Half, lambda context: (BATCHES, BATCHES), partial(torch.optim.SGD, lr=1.0)
        )
        (self.context,) = LocalGrid(self.app, 1, workers=0).contexts.values()
        self.context.node_config |= {"feature-clip-norm": 10.0, "feature-noise": 4.0}

    def begin(self) -> pb.DeviceFrame:
        """Give it the message that brings its ticket and model; return its frame."""
        return self._asked({}, arrays=ArrayRecord(seeded(Half).state_dict()))

    def answer(self, number: int, gradient: Tensor | None = None) -> pb.DeviceFrame:
        """Answer the frame of that number; return the next one."""
        stepped = pb.Stepped(loss=1.0)
        if gradient is None:
            gradient = torch.zeros(ROWS, WIDTH)
        stepped.gradient.data = gradient.numpy().astype("<f4").tobytes()
        return self._asked(frame_field(pb.ServerFrame(number=number, stepped=stepped)))

    def _asked(self, frame: dict[str, Any], **records: ArrayRecord) -> pb.DeviceFrame:
        content = RecordDict({"config": ConfigRecord(), **records})
        content = with_fields(content, {**TICKET.to_fields(), **frame})
        message = Message(content, 1000, "train")
        message.metadata.__dict__["_message_id"] = "asked"
        return pb.DeviceFrame.FromString(frame_of(self.app(message, self.context)))


def features(frame: pb.DeviceFrame) -> Tensor:
    sent = np.frombuffer(frame.step.features.data, dtype="<f4")
    return torch.from_numpy(sent.copy()).reshape(ROWS, WIDTH)


def test_an_answer_is_taken_once() -> None:
    """With another gradient the next step would have other features and the same noise."""
    device = Device()
    assert device.begin().number == 1
    assert device.answer(1).number == 2
    with pytest.raises(ProtocolError, match="answered frame 1, and frame 2 waits"):
        device.answer(1, torch.full((ROWS, WIDTH), 1e6))
    assert device.answer(2).number == 3


@pytest.mark.parametrize("number", [1, 3, 2**40])
def test_no_other_frame_than_the_last_is_answered(number: int) -> None:
    device = Device()
    device.begin()
    device.answer(1)
    with pytest.raises(ProtocolError, match="and frame 2 waits for an answer"):
        device.answer(number)


def test_an_answer_that_does_not_fit_is_not_made_good_by_another() -> None:
    device = Device()
    device.begin()
    with pytest.raises(PayloadError):
        device.answer(1, torch.zeros(1))
    with pytest.raises(ProtocolError, match="answered frame 1, and none waits"):
        device.answer(1)


def test_each_step_that_goes_up_has_noise_of_its_own() -> None:
    """Even where a node whose process was killed gets the same message again."""
    device = Device()
    device.begin()
    before = deepcopy(device.context)
    first = device.answer(1)
    device.context = before
    again = device.answer(1)
    assert first.number == again.number == 2
    assert first.step.labels == again.step.labels
    assert not torch.isclose(features(first), features(again)).any()
    # and the turn goes on
    assert device.answer(2).number == 3
