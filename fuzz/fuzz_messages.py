"""Coverage-guided fuzzing of devices' replies. In the repository's root, after ``pip install atheris``:

    python -m fuzz.fuzz_messages -max_total_time=300

An input decides on a strategy, and on changes of what one of three devices replies: to
the query for its name, in training and in evaluation, with frames in the messages or
without. Two rounds go through `SplitGrid`. An error that comes out of them is reported
as a crash, and so is another device that fails, an array that is not finite, or a
result that is no JSON. Other options are libFuzzer's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any

from google.protobuf.message import DecodeError

from fuzz.choices import Choices
from fuzz.fuzzing import fuzz, instrumented, watched_log
from fuzz.mutations import SHAPES, change_message, changed_bytes, float_of

with instrumented(
    "flwr_splitfc.exchange", "flwr_splitfc.strategy", "flwr_splitfc.codec.model_arrays"
):
    import torch
    from flwr.app import (
        Array,
        ArrayRecord,
        ConfigRecord,
        Context,
        Error,
        Message,
        MetricRecord,
        RecordDict,
    )
    from flwr.serverapp.strategy import FedAdam, FedAvg, FedMedian, Strategy
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
    from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
    from torch import nn

    from flwr_splitfc import (
        EndpointConfig,
        RoundRobin,
        RunFailed,
        SplitLearning,
        answer_device_query,
    )
    from flwr_splitfc.exchange.device.model_codec_mod import model_codec_mod
    from flwr_splitfc.exchange.protocol import split_pb2 as pb
    from flwr_splitfc.exchange.protocol.frames import (
        FRAME_KEY,
        frame_of,
        frame_record,
        frame_reply,
        server_frame,
    )
    from flwr_splitfc.exchange.protocol.model_record import packed_model
    from flwr_splitfc.exchange.protocol.split_errors import ProtocolError
    from flwr_splitfc.exchange.protocol.ticket import Ticket
    from flwr_splitfc.run.results import results_text
    from fuzz.valid_frames import CLASSES, COLUMNS, WIRES
    from tests.local_grid import LocalGrid

SERVER_HALF = nn.Sequential(nn.Flatten(), nn.Linear(COLUMNS, CLASSES))
DEVICE_HALF = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8))
HALF = ArrayRecord(DEVICE_HALF.state_dict())
TRAINED = ArrayRecord(nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8)).state_dict())
HALF_SHAPES = {name: array.shape for name, array in HALF.items()}
SGD = partial(torch.optim.SGD, lr=0.1)
ROUNDS = 2
UNAVAILABLE = 3  # among Flower's error codes

*_, (PREDICT,), (CLOSE,) = WIRES[0].exchanges
(STEP,) = WIRES[0].step(1.0)
METRICS = {"num-examples": 8, "steps": 1, "codec_seconds": 0.1, "train_loss": 1.5}


def honest(message: Message, context: Context) -> Message:
    """The reply of a device that does as agreed, with a model as it is asked for."""
    return model_codec_mod(message, context, as_fast_as_can_be)


def as_fast_as_can_be(message: Message, context: Context) -> Message:
    if message.metadata.message_type.startswith("query"):
        return answer_device_query(message, context)
    trains = message.metadata.message_type == "train"
    content = RecordDict({"metrics": MetricRecord(METRICS)})
    if trains:
        # a record of its own: strategies take arrays out of it
        content["arrays"] = ArrayRecord(dict(TRAINED))
    number = server_frame(message).number
    if number == 0 and Ticket.from_message(message).is_for_messages:
        return frame_reply(message, numbered(STEP if trains else PREDICT, 1))
    content[FRAME_KEY] = frame_record(numbered(CLOSE, number + 1))
    return Message(content, reply_to=message)


def numbered(frame: pb.DeviceFrame, number: int) -> pb.DeviceFrame:
    copied = pb.DeviceFrame()
    copied.CopyFrom(frame)
    copied.number = number
    return copied


# -- changes of a reply ----------------------------------------------------------------


def changed_reply(reply: Message, choices: Choices) -> Message:
    if choices.one_in(10):
        return _error(reply, choices)
    if reply.has_content():
        # the grid's messages share records
        reply.content = RecordDict(dict(reply.content))
    while choices.one_in(2):
        choices.of(CHANGES)(reply, choices)
    return reply


def _error(reply: Message, choices: Choices) -> Message:
    error = Error(choices.whole_number(16), choices.text())
    wrong = Message(error, reply_to=reply)
    wrong.metadata.__dict__.update(reply.metadata.__dict__)
    return wrong


def _change_frame(reply: Message, choices: Choices) -> None:
    if not reply.content.config_records.get(FRAME_KEY):
        _put(reply, FRAME_KEY, frame_record(CLOSE))
        return
    frame = pb.DeviceFrame()
    # or it was changed before
    with suppress(DecodeError, ProtocolError):
        frame.MergeFromString(frame_of(reply))
    change_message(frame, choices)
    data = frame.SerializeToString()
    if choices.one_in(4):
        data = changed_bytes(data, choices)
    record = choices.of([{"frame": data}, {"frame": data}, {"frame": 7}, {}])
    _put(reply, FRAME_KEY, ConfigRecord(record))


def _change_array(reply: Message, choices: Choices) -> None:
    record = choices.of(list(reply.content.array_records.values()) or [ArrayRecord()])
    arrays = dict(record)
    name = choices.of([*arrays, choices.text()])
    array = arrays.get(name, HALF["0.weight"])
    shapes = [HALF_SHAPES.get(name, ()), *SHAPES]
    match choices.below(6):
        case 0:
            arrays.pop(name, None)
        case 1:
            arrays[name] = _array(array, data=changed_bytes(array.data, choices))
        case 2:
            arrays[name] = _array(array, dtype=choices.text())
        case 3:
            arrays[name] = _array(array, stype=choices.text())
        case 4:
            arrays[name] = _array(array, shape=(choices.whole_number(32),))
        case _:
            entry = float_of(torch.float32, choices)
            arrays[name] = Array(torch.full(choices.of(shapes), entry).numpy())
    key = choices.of([*reply.content.array_records, choices.text()])
    _put(reply, key, ArrayRecord(arrays))


def _change_model(reply: Message, choices: Choices) -> None:
    """Where models are coded, all arrays of one are in one."""
    for key, record in list(reply.content.array_records.items()):
        data = packed_model(record)
        if data is None:
            continue
        model = pb.Model()
        # or it was changed before
        with suppress(DecodeError):
            model.MergeFromString(data)
        change_message(model, choices)
        (name,) = record
        array = _array(record[name], data=model.SerializeToString())
        _put(reply, key, ArrayRecord({name: array}))


def _array(array: Array, **changes: Any) -> Array:
    fields = {
        "dtype": array.dtype,
        "shape": array.shape,
        "stype": array.stype,
        "data": array.data,
    }
    return Array(**{**fields, **changes})


def _change_metrics(reply: Message, choices: Choices) -> None:
    key = choices.of([*reply.content.metric_records, choices.text()])
    metrics = dict(reply.content.metric_records.get(key, {}))
    name = choices.of([*metrics, choices.text()])
    values: list[Any] = [
        choices.float(),
        choices.whole_number(32) - 2**31,
        [],
        [choices.float()],
        [1] * 2000,
    ]
    if choices.one_in(6):
        metrics.pop(name, None)
    else:
        metrics[name] = choices.of(values)
    _put(reply, key, MetricRecord(metrics))


def _change_config(reply: Message, choices: Choices) -> None:
    """Of the answer to a query: the name, and the node config with its budgets."""
    key = choices.of([*reply.content.config_records, choices.text()])
    config = dict(reply.content.config_records.get(key, {}))
    name = choices.of([*config, *CONFIG_KEYS, choices.text()])
    config[name] = choices.of(
        [
            choices.text(),
            choices.float(),
            choices.whole_number(32),
            choices.one_in(2),
            choices.bytes(4) or b"0",
            [choices.float()],
            ["0"] * 100,
        ]
    )
    _put(reply, key, ConfigRecord(config))


CONFIG_KEYS = ["uplink-bits", "downlink-bits", "device-name", "server-round"]


def _change_records(reply: Message, choices: Choices) -> None:
    key = choices.of([*reply.content, choices.text()])
    if choices.one_in(2) and key in reply.content:
        record = reply.content.pop(key)
        _put(reply, choices.text(), record)
    elif key in reply.content:
        del reply.content[key]
    else:
        _put(reply, key, choices.of([ArrayRecord, MetricRecord, ConfigRecord])())


def _put(reply: Message, key: str, record: Any) -> None:
    # in place of one of another kind, which Flower would warn of
    reply.content.pop(key, None)
    reply.content[key] = record


def _change_metadata(reply: Message, choices: Choices) -> None:
    name, value = choices.of(
        [
            ("_src_node_id", 1000 + choices.below(4)),
            ("_src_node_id", choices.whole_number(64)),
            ("_message_type", choices.text()),
            ("_message_type", choices.of(["train", "evaluate", "query.split_device"])),
            ("_reply_to_message_id", choices.text()),
        ]
    )
    reply.metadata.__dict__[name] = value


CHANGES: list[Callable[[Message, Choices], None]] = [
    _change_frame,
    _change_array,
    _change_model,
    _change_model,
    _change_metrics,
    _change_config,
    _change_records,
    _change_metadata,
]


class FuzzedGrid(LocalGrid):
    """A grid of which one node's replies are changed, and may get lost.

    For what is lost Flower makes an error reply in the end; here it does so at once.

    Attributes
    ----------
    names : int
        How often the hostile node was asked for its name: a second answer may differ.
    """

    def __init__(self, choices: Choices) -> None:
        super().__init__(honest, 3, workers=0)
        self.choices = choices
        self.hostile = 1000 + choices.below(3)
        self.names = 0
        self._sent: dict[str, Message] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        pushed = list(messages)
        message_ids = list(super().push_messages(pushed))
        self._sent.update(zip(message_ids, pushed, strict=True))
        return message_ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        lost = [self._lost(one) for one in message_ids if one not in self._futures]
        pulled = lost
        for reply in super().pull_messages(message_ids):
            pulled += self._as_it_comes(reply)
        return pulled

    def _lost(self, message_id: str) -> Message:
        return Message(Error(UNAVAILABLE), reply_to=self._sent[message_id])

    def _as_it_comes(self, reply: Message) -> list[Message]:
        if reply.metadata.src_node_id != self.hostile:
            return [reply]
        self.names += reply.metadata.message_type.startswith("query")
        try:
            reply = changed_reply(reply, self.choices)
        except Exception as error:
            # or it would pass for one of Flower's
            raise RuntimeError("the fuzzer cannot make the change") from error
        if self.choices.one_in(6):
            reply = self._off_the_wire(reply)
        # twice, or not at all
        return [reply] * self.choices.of([1, 1, 1, 1, 1, 1, 2, 0])

    def _off_the_wire(self, reply: Message) -> Message:
        """The reply as Flower makes it of its bytes, in which some are wrong."""
        contents = {
            key: each.deflate() for key, each in get_all_nested_objects(reply).items()
        }
        key = self.choices.of(sorted(contents))
        contents[key] = changed_bytes(contents[key], self.choices)
        read = inflate_object_from_contents(reply.object_id, contents)
        if not isinstance(read, Message):
            raise TypeError("no message")
        read.metadata.__dict__["_message_id"] = reply.metadata.message_id
        return read


def some_devices(choices: Choices) -> Strategy:
    make: type[FedAvg] = choices.of([FedAvg, RoundRobin, FedAdam, FedMedian])
    return make(min_available_nodes=3)


def answer(data: bytes) -> None:
    """One input."""
    choices = Choices(data)
    transport = choices.of(["stream", "stream", "messages"])
    strategy = SplitLearning(
        SERVER_HALF,
        nn.CrossEntropyLoss(),
        SGD,
        device="cpu",
        devices=some_devices(choices),
        shared_server_half=choices.of([True, False]),
        optimizer_state=choices.of(["relay", "per-device", "fresh"]),
        model_bits=choices.of([4, 32, None]),
        endpoint=EndpointConfig(transport=transport),
        max_failed_rounds=ROUNDS,
    )
    grid = FuzzedGrid(choices)
    arrays = HALF
    with watched_log(), suppress(RunFailed):
        arrays = strategy.start(grid, HALF, ROUNDS).arrays
    for name, tensor in arrays.to_torch_state_dict().items():
        assert tensor.isfinite().all(), f"{name} is not finite"
    text = results_text({"rounds": strategy.progress.rows})
    json.loads(text, parse_constant=_no_constant)
    if grid.names == 1:
        for number in range(1, ROUNDS + 1):
            # whatever it is called
            failures = strategy.ledger.failures(number)
            assert len(failures) <= 1, failures


def _no_constant(word: str) -> None:
    raise AssertionError(f"{word} is no JSON")


if __name__ == "__main__":
    fuzz(answer)
