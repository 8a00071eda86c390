"""What is counted of Flower's messages is what Flower puts on the wire."""

import pickle
from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from torch import nn

from flwr_splitfc import EndpointConfig, RoundRobin, SplitClientApp
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.frames import (
    FRAME_KEY,
    frame_of,
    frame_record,
    has_frame,
)
from flwr_splitfc.exchange.server.grid.message_bytes import MessageMeter
from flwr_splitfc.strategy import SplitLearning
from tests.halves import DeviceHalf, ServerHalf, batches
from tests.local_grid import LocalGrid

WEIGHTS = np.arange(60, dtype=np.float32).reshape(6, 10)
DIGEST_BYTES = 64


def message(**records: ArrayRecord | ConfigRecord | MetricRecord) -> Message:
    return Message(RecordDict(records), 1000, "train")


def sent_by_flower(sent: Message) -> int:
    """Bytes of the objects that Flower pushes for a message's content."""
    objects = get_all_nested_objects(sent.content)
    return sum(len(each.deflate()) for each in objects.values())


def layers(count: int) -> ArrayRecord:
    return ArrayRecord({f"{i}.weight": Array(WEIGHTS + i) for i in range(count)})


@pytest.mark.parametrize(
    "sent",
    [
        message(),
        message(config=ConfigRecord({"server-round": 3, "name": "Zoë", "on": True})),
        message(metrics=MetricRecord({"loss": 0.25, "of-class": [1, 2]})),
        message(arrays=layers(1)),
        message(arrays=layers(7), config=ConfigRecord({"lr": 0.1})),
        message(arrays=layers(3), again=layers(3), others=layers(4)),
        message(arrays=ArrayRecord({"nothing": Array(np.zeros(0))})),
        # Flower cuts the data of an array into pieces of 5 MiB
        message(arrays=ArrayRecord({"wide": Array(np.arange(2**20, dtype="f8"))})),
        message(arrays=ArrayRecord({"same": Array(np.zeros(2**21))})),
    ],
)
def test_it_is_what_flower_sends(sent: Message) -> None:
    counted = MessageMeter().bytes_of(sent)
    assert counted.total() == sent_by_flower(sent)
    assert counted["envelope"] > 0


def test_the_model_is_the_data_of_the_arrays() -> None:
    one = MessageMeter().bytes_of(message(arrays=layers(1)))
    five = MessageMeter().bytes_of(message(arrays=layers(5)))
    assert five["model"] == 5 * one["model"] == 5 * len(Array(WEIGHTS).data)
    assert five["envelope"] > one["envelope"] + 4 * 2 * DIGEST_BYTES


def test_what_a_message_holds_twice_is_sent_once() -> None:
    once = MessageMeter().bytes_of(message(arrays=layers(3)))
    twice = MessageMeter().bytes_of(message(arrays=layers(3), again=layers(3)))
    assert twice["model"] == once["model"]


def test_messages_that_share_arrays_count_alike() -> None:
    arrays = layers(3)
    meter = MessageMeter()
    first = meter.bytes_of(message(arrays=arrays, config=ConfigRecord({"a": 1})))
    second = meter.bytes_of(message(arrays=arrays, config=ConfigRecord({"b": 1})))
    assert first == second


def test_a_counted_message_can_still_be_pickled() -> None:
    sent = message(arrays=layers(2))
    MessageMeter().bytes_of(sent)
    assert pickle.loads(pickle.dumps(sent)).content == sent.content  # noqa: S301


def test_the_data_of_a_frame_is_counted_elsewhere() -> None:
    frame = pb.DeviceFrame(open=pb.Open(software="x" * 1000))
    sent = message(**{FRAME_KEY: frame_record(frame)})
    counted = MessageMeter().bytes_of(sent)
    assert counted["model"] == 0
    assert counted.total() == sent_by_flower(sent) - len(frame.SerializeToString())


class WeighingGrid(LocalGrid):
    """Weighs the messages that train, and the replies, as they pass."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.passed: Counter[str] = Counter()

    def weigh(self, way: str, passing: Message) -> None:
        if passing.metadata.message_type == "train":
            self.passed[way] += sent_by_flower(passing)
            if has_frame(passing):
                self.passed[way] -= len(frame_of(passing))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        for passing in messages:
            self.weigh("down", passing)
        return super().push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(super().pull_messages(message_ids))
        for passing in replies:
            self.weigh("up", passing)
        return replies


@pytest.mark.parametrize("transport", ["stream", "messages"])
def test_a_run_counts_all_that_its_messages_hold(transport: Any) -> None:
    adam = partial(torch.optim.Adam, lr=1e-2)
    strategy = SplitLearning(
        ServerHalf(),
        nn.CrossEntropyLoss(),
        adam,
        devices=RoundRobin(fraction_evaluate=0.0),
        endpoint=EndpointConfig(transport=transport),
    )
    data = batches(3)
    app = SplitClientApp(DeviceHalf, lambda context: (data, data), adam)
    grid = WeighingGrid(app, 2)
    strategy.start(grid, ArrayRecord(DeviceHalf().state_dict()), 2)
    traffic = strategy.ledger.total("train")
    uplink, downlink = traffic.uplink_bytes, traffic.downlink_bytes
    assert traffic.steps == 6
    assert uplink["model"] + uplink["envelope"] == grid.passed["up"]
    assert downlink["model"] + downlink["envelope"] == grid.passed["down"]
    if transport == "messages":
        # a message each way for every frame, each with the ticket
        assert downlink["envelope"] > 8 * 400
