"""A device's name, its turns and its kept state belong to the node that said it first."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from torch import nn

from flwr_splitfc import RoundRobin, SplitLearning, answer_device_query, connect
from flwr_splitfc.exchange import Devices
from flwr_splitfc.exchange.protocol.ticket import Ticket
from tests.halves import DeviceHalf, ServerHalf, batches, seeded
from tests.local_grid import LocalGrid

SGD = partial(torch.optim.SGD, lr=0.1)
SECRET = torch.tensor([4, 2])


class Turns:
    """An app that notes who trained, and what was kept for the device.

    Node 1002 says that it is device 1, which is node 1001.
    """

    def __init__(self) -> None:
        self.trained: list[tuple[int, str]] = []
        self.kept: dict[int, list[Any]] = {}

    def __call__(self, message: Message, context: Context) -> Message:
        if context.node_id == 1002:
            context.node_config["partition-id"] = 1
        if message.metadata.message_type.startswith("query"):
            return answer_device_query(message, context)
        half = seeded(DeviceHalf)
        with connect(message, context) as session:
            x, y = batches(1)[0]
            session.loss(half(x), y).backward()
            self.kept.setdefault(context.node_id, []).append(session.state.get("own"))
            session.state["own"] = SECRET
            metrics = session.metrics()
        self.trained.append((context.node_id, Ticket.from_message(message).device))
        content = {
            "arrays": ArrayRecord(half.state_dict()),
            "metrics": MetricRecord(metrics),
        }
        return Message(RecordDict(content), reply_to=message)


class Joining(LocalGrid):
    """A grid of which node 1002 is a part from some round on, and 1001 until then."""

    def __init__(self, app: Any, after: int, leaves: bool = False) -> None:
        super().__init__(app, 3)
        self.after = after
        self.leaves = leaves

    def get_node_ids(self) -> Iterable[int]:
        if len(self.trained) < self.after:
            return [1000, 1001]
        return [1000, 1002] if self.leaves else [1002, 1001, 1000]


def run(grid: LocalGrid, rounds: int = 6) -> SplitLearning:
    strategy = SplitLearning(
        seeded(ServerHalf),
        nn.CrossEntropyLoss(),
        SGD,
        device="cpu",
        devices=RoundRobin(min_available_nodes=2, fraction_evaluate=0.0),
    )
    arrays = ArrayRecord(seeded(DeviceHalf).state_dict())
    strategy.start(grid, arrays, rounds)
    return strategy


@pytest.mark.parametrize("after", [0, 2], ids=["at-once", "later"])
def test_a_second_node_with_a_name_gets_neither_turns_nor_state(
    after: int, caplog: pytest.LogCaptureFixture
) -> None:
    turns = Turns()
    strategy = run(Joining(turns, after))
    assert {name for node, name in turns.trained if node == 1001} == {"1"}
    assert {name for node, name in turns.trained if node == 1002} == {"1002"}
    assert turns.kept[1002][0] is None
    assert all(torch.equal(own, SECRET) for own in turns.kept[1001][1:])
    assert len(turns.kept[1001]) == 2
    assert strategy.ledger.devices().keys() == {"0", "1", "1002"}
    assert (
        "node 1002 goes by its id: its name is '1', as that of node 1001" in caplog.text
    )


def test_nor_after_the_first_node_has_left() -> None:
    turns = Turns()
    run(Joining(turns, 2, leaves=True))
    assert turns.trained[:2] == [(1000, "0"), (1001, "1")]
    assert {name for node, name in turns.trained if node == 1002} == {"1002"}
    assert turns.kept[1002][0] is None


def test_the_id_of_another_node_is_a_name_that_is_taken() -> None:
    def says_that_it_is_1001(message: Message, context: Context) -> Message:
        if context.node_id == 1001:
            raise ValueError("does not say who it is")
        context.node_config["device-name"] = "1001"
        return answer_device_query(message, context)

    devices = Devices(LocalGrid(says_that_it_is_1001, 2))
    assert devices.names([1000, 1001]) == {1000: "1000", 1001: "1001"}


def test_a_name_under_a_key_with_an_underscore_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def misspells(message: Message, context: Context) -> Message:
        context.node_config["device_name"] = "kitchen"
        return answer_device_query(message, context)

    assert Devices(LocalGrid(misspells, 1)).names([1000]) == {1000: "1000"}
    assert "the config has 'device_name': write device-name" in caplog.text
