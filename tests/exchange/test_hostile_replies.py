"""What a device puts into a Flower message fails that device alone.

Device 1 of three replies as it likes, each time it is asked to train.
"""

import json
import re
from collections.abc import Callable, Iterable
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
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
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    FedAvg,
    QFedAvg,
    Strategy,
)
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from torch import nn

from flwr_splitfc import (
    EndpointConfig,
    HeadAndTail,
    RoundRobin,
    RunFailed,
    SplitClientApp,
    SplitLearning,
)
from flwr_splitfc.exchange import Ledger
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.frames import FRAME_KEY, frame_record
from flwr_splitfc.exchange.server.grid.metered_grid import MeteredGrid
from flwr_splitfc.exchange.server.grid.reply_checks import Reply, ReplyChecks
from flwr_splitfc.model import JoinedModel
from flwr_splitfc.run.progress import Progress
from flwr_splitfc.run.rounds import Round
from tests.halves import DeviceHalf, ServerHalf, batches, seeded, weights
from tests.local_grid import LocalGrid

ADAM = partial(torch.optim.Adam, lr=1e-2)
HONEST = SplitClientApp(DeviceHalf, lambda context: (batches(3), batches(1)), ADAM)
NAN = float("nan")

Change = Callable[[Message], Message | None]


def hostile(change: Change, kind: str = "train") -> Any:
    """An app whose device 1 changes its replies, or gives others."""

    def app(message: Message, context: Context) -> Message:
        reply = HONEST(message, context)
        is_device_one = context.node_config["partition-id"] == 1
        if is_device_one and message.metadata.message_type == kind:
            return change(reply) or reply
        return reply

    return app


def make(devices: Strategy, **options: Any) -> SplitLearning:
    return SplitLearning(
        seeded(ServerHalf),
        nn.CrossEntropyLoss(),
        ADAM,
        device="cpu",
        devices=devices,
        **options,
    )


def run(app: Any, devices: Strategy, **options: Any) -> tuple[SplitLearning, Any]:
    strategy = make(devices, **options)
    arrays = ArrayRecord(seeded(DeviceHalf).state_dict())

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        model = strategy.joined_model(DeviceHalf(), arrays)
        x, _ = batches(1)[0]
        assert model(x).isfinite().all()
        return MetricRecord({"accuracy": 0.5})

    result = strategy.start(Forging(app, 3), arrays, 3, evaluate_fn=evaluate)
    return strategy, result


def in_turn() -> Strategy:
    return RoundRobin(min_available_nodes=3, fraction_evaluate=0.0)


def together() -> Strategy:
    return FedAvg(min_available_nodes=3, fraction_evaluate=0.0)


def with_arrays(changed: dict[str, Any]) -> Change:
    def change(reply: Message) -> None:
        arrays = reply.content.array_records["arrays"]
        for name, value in changed.items():
            if value is None:
                del arrays[name]
            else:
                arrays[name] = value

    return change


def with_metrics(**changed: Any) -> Change:
    def change(reply: Message) -> None:
        metrics = reply.content.metric_records["metrics"]
        for name, value in changed.items():
            name = name.replace("num_", "num-")
            if value is None:
                del metrics[name]
            else:
                metrics[name] = value

    return change


def with_record(key: str, record: Any) -> Change:
    def change(reply: Message) -> None:
        reply.content[key] = record

    return change


def with_keys(new_keys: dict[str, str]) -> Change:
    def change(reply: Message) -> None:
        content = reply.content.items()
        renamed = {new_keys.get(key, key): record for key, record in content}
        reply.content = RecordDict(renamed)

    return change


def hide_metrics(reply: Message) -> None:
    """Another record has the usual key of the metrics."""
    with_keys({"metrics": "more"})(reply)
    reply.content["metrics"] = ConfigRecord({"more": 1.0})


def without(key: str) -> Change:
    def change(reply: Message) -> None:
        del reply.content[key]

    return change


WEIGHT = "layers.0.weight"
SHAPE = (4, 1, 3, 3)
GOOD = np.zeros(SHAPE, np.float32)


def raw(
    data: bytes, shape: tuple[int, ...] = SHAPE, stype: str = "numpy.ndarray"
) -> Array:
    return Array(dtype="float32", shape=shape, stype=stype, data=data)


ARRAYS = [
    (with_arrays({WEIGHT: Array(GOOD * NAN)}), f"'{WEIGHT}' is not finite"),
    (with_arrays({WEIGHT: Array(GOOD + np.inf)}), "is not finite"),
    (with_arrays({WEIGHT: Array(GOOD - 3e38)}), r"of -3e\+38, beyond 1e\+18"),
    (with_arrays({WEIGHT: Array(GOOD[0])}), r"wanted float32 of shape \(4, 1, 3, 3\)"),
    (with_arrays({WEIGHT: Array(GOOD.astype(np.float64))}), "wanted float32"),
    (with_arrays({WEIGHT: Array(GOOD.astype("U1"))}), "wanted float32"),
    (with_arrays({WEIGHT: raw(b"")}), "cannot be read"),
    (with_arrays({WEIGHT: raw(b"\x93NUMPY\x01\x00v\x00garbage")}), "cannot be read"),
    (with_arrays({WEIGHT: raw(Array(GOOD[0]).data)}), "wanted float32 of shape"),
    (with_arrays({WEIGHT: raw(b"PK\x05\x06" + bytes(18))}), "cannot be read"),
    (with_arrays({WEIGHT: raw(Array(GOOD).data + bytes(9000))}), "has 9"),
    (with_arrays({WEIGHT: raw(Array(GOOD).data, stype="pickle")}), "cannot be read"),
    (with_arrays({WEIGHT: None}), "without 'layers.0.weight'"),
    (with_arrays({"\x1b[2J\n" * 1000: Array(GOOD)}), "no array of the device half"),
    (without("arrays"), "has 0 ArrayRecords, wanted 1"),
    (with_record("more", ArrayRecord([GOOD])), "has 2 ArrayRecords, wanted 1"),
]
METRICS = [
    (with_metrics(num_examples=NAN), "'num-examples' is nan"),
    (with_metrics(num_examples=0), "num-examples is 0: the device went through no"),
    (with_metrics(num_examples=-48), "'num-examples' is -48, wanted more than 0"),
    (with_metrics(num_examples=1e300), r"'num-examples' is 1e\+300"),
    (with_metrics(num_examples=[48]), r"'num-examples' is \[48\]"),
    (with_metrics(num_examples=None), "no metric 'num-examples'"),
    (with_metrics(loss=[1.0] * 1001), "numbers, at most 1000 may be"),
    (with_record("metrics", MetricRecord({"a\x1b\n": 1.0, "num-examples": 1})), "name"),
    (
        with_record("metrics", MetricRecord({"a" * 5000: 1.0, "num-examples": 1})),
        "name",
    ),
    (without("metrics"), "has 0 MetricRecords, wanted 1"),
    (with_record("more", MetricRecord({"num-examples": 1})), "has 2 MetricRecords"),
]


def with_frame(**fields: Any) -> Change:
    """The reply brings another frame than the one that closes its session of 3 steps."""
    return with_record(FRAME_KEY, frame_record(pb.DeviceFrame(**fields)))


FRAMES = [
    (with_record(FRAME_KEY, ConfigRecord({"frame": b"\xff"})), "1 bytes are no frame"),
    (with_record(FRAME_KEY, ConfigRecord({"frame": "7"})), "a frame holds none"),
    (with_record(FRAME_KEY, ConfigRecord()), "a frame holds none"),
    (with_frame(), "a frame of kind None, wanted 'close'"),
    (with_frame(number=4, step=pb.Step()), "a frame of kind 'step', wanted 'close'"),
    (with_frame(leave=pb.Leave()), "a frame of kind 'leave', wanted 'close'"),
    (with_frame(open=pb.Open(protocol=3, nonce=bytes(16))), "a frame of kind 'open'"),
    (with_frame(number=3, close=pb.Close()), "frame 3 came after frame 3"),
    (with_frame(number=5, close=pb.Close()), "frame 5 came after frame 3"),
    (
        with_frame(number=4, close=pb.Close(state=[pb.Tensor()] * 2**16)),
        "a frame has more than 65536 fields",
    ),
    (
        with_frame(number=4, close=pb.Close(state=[pb.Tensor(name="n" * 300)])),
        "a name or a dtype of 300 characters",
    ),
]
OTHERS = [
    (lambda reply: _error(reply, "it\n\x1b[31mbroke"), r"\\x1b\[31mbroke"),
    (lambda reply: _set(reply, _message_type="query"), "has type 'query'"),
    (lambda reply: _set(reply, forged_node=1000), "of node 1000"),
]


def _error(reply: Message, reason: str) -> Message:
    message = Message(Error(2, reason), reply_to=reply)
    message.metadata.__dict__.update(reply.metadata.__dict__)
    return message


def _set(reply: Message, **metadata: Any) -> None:
    reply.metadata.__dict__.update(metadata)


class Forging(LocalGrid):
    """Lets a reply say that it is of another node."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(super().pull_messages(message_ids))
        for reply in replies:
            metadata = reply.metadata.__dict__
            if "forged_node" in metadata:
                metadata["_src_node_id"] = metadata["forged_node"]
        return replies


def only_device_one_failed(
    strategy: SplitLearning, why: str, rounds: list[int]
) -> None:
    for number in (1, 2, 3):
        failures = strategy.ledger.failures(number)
        assert failures.keys() == ({"1"} if number in rounds else set())
        for failure in failures.values():
            assert re.search(why, failure)
            assert failure.isprintable()
            assert len(failure) <= 500
    for weight in weights(strategy.server_model).values():
        assert weight.isfinite().all()


@pytest.mark.parametrize(("change", "why"), ARRAYS + METRICS[:2] + FRAMES + OTHERS)
def test_a_reply_that_is_wrong_loses_its_turn(change: Change, why: str) -> None:
    strategy, result = run(hostile(change), in_turn())
    only_device_one_failed(strategy, why, [2])
    for array in result.arrays.to_torch_state_dict().values():
        assert array.isfinite().all()


@pytest.mark.parametrize(("change", "why"), ARRAYS + METRICS + FRAMES)
def test_a_reply_that_is_wrong_is_left_out_of_the_average(
    change: Change, why: str
) -> None:
    strategy, result = run(hostile(change), together(), shared_server_half=False)
    only_device_one_failed(strategy, why, [1, 2, 3])
    assert result.arrays.keys() == seeded(DeviceHalf).state_dict().keys()


def test_a_metric_that_is_not_finite_fails_no_device() -> None:
    """An AUC of one class is NaN, on a device that is honest."""

    def undefined(reply: Message) -> None:
        reply.content.metric_records["metrics"]["train_loss"] = NAN

    strategy, _ = run(hostile(undefined), together())
    assert all(not strategy.ledger.failures(number) for number in (1, 2, 3))


def q_fed_avg(devices: int, q: float) -> Strategy:
    return QFedAvg(
        client_learning_rate=0.01,
        q=q,
        min_available_nodes=devices,
        fraction_evaluate=0.0,
    )


@pytest.mark.parametrize(
    ("loss", "q", "why"),
    [
        (NAN, 0.1, "'train_loss' is nan, wanted at least 0"),
        (np.inf, 0.1, "'train_loss' is inf"),
        (-1.0, 0.1, "'train_loss' is -1.0"),
        (1e300, 2.0, r"is 1e\+300, wanted at least 0 and at most 1e\+09"),
        ([1.0], 0.1, r"'train_loss' is \[1.0\]"),
        (None, 0.1, "no metric 'train_loss', which the strategy computes with"),
    ],
    ids=str,
)
def test_a_loss_that_a_strategy_cannot_compute_with(
    loss: Any, q: float, why: str
) -> None:
    strategy, _ = run(hostile(with_metrics(train_loss=loss)), q_fed_avg(3, q))
    only_device_one_failed(strategy, why, [1, 2, 3])


def clipped_on_devices() -> Strategy:
    inner = FedAvg(min_available_nodes=2, fraction_evaluate=0.0)
    return DifferentialPrivacyClientSideAdaptiveClipping(
        inner, noise_multiplier=0.1, num_sampled_clients=2
    )


@pytest.mark.parametrize(
    ("devices", "metric"),
    [(partial(q_fed_avg, 2, 0.1), "train_loss"), (clipped_on_devices, "norm_bit")],
)
def test_of_two_devices_one_lacks_a_metric_that_the_strategy_needs(
    devices: Callable[[], Strategy], metric: str
) -> None:
    def app(message: Message, context: Context) -> Message:
        reply = HONEST(message, context)
        if message.metadata.message_type == "train":
            metrics = reply.content.metric_records["metrics"]
            metrics["norm_bit"] = 1
            if context.node_config["partition-id"] == 1:
                del metrics[metric]
        return reply

    strategy = make(devices())
    arrays = ArrayRecord(seeded(DeviceHalf).state_dict())
    strategy.start(LocalGrid(app, 2), arrays, 2)
    for number in (1, 2):
        (failed,) = strategy.ledger.failures(number).items()
        assert failed[0] == "1"
        assert f"no metric '{metric}'" in failed[1]


def test_a_weight_that_no_device_reports_ends_the_run_with_its_name() -> None:
    devices = FedAvg(min_available_nodes=3, weighted_by_key="examples")
    with pytest.raises(RunFailed, match="the reply has no metric 'examples'"):
        run(HONEST, devices)


def replies_with(asked: list[ArrayRecord], *contents: dict[str, Any]) -> list[Reply]:
    """A good reply of each device, but for what is in it."""
    sent = RecordDict({f"arrays{number}": each for number, each in enumerate(asked)})
    messages = [Message(sent, node, "train") for node, _ in enumerate(contents)]
    return [
        Reply(Message(RecordDict(content), reply_to=message), message)
        for message, content in zip(messages, contents, strict=True)
    ]


LEAST = np.finfo(np.float32).min


@pytest.mark.parametrize(
    ("was", "came", "is_refused"),
    [
        (np.float32([0.0, -np.inf]), np.float32([0.5, -np.inf]), False),
        (np.float32([0.0, -np.inf]), np.float32([np.inf, -np.inf]), True),
        (np.float32([0.0, LEAST]), np.float32([0.5, LEAST]), False),
        (np.float32([0.0, LEAST]), np.float32([LEAST, LEAST]), True),
        (np.float32([0.0, LEAST]), np.float32([0.0, -np.inf]), True),
        (np.float16([0.0]), np.float16([6e4]), False),
        (np.array(0.0), np.array(1e18), False),
        (np.array(0.0), np.array(1.1e18), True),
        (np.array(0), np.array(2**62), False),
        (np.array([False]), np.array([True]), False),
    ],
    ids=str,
)
def test_large_entries_are_refused_where_none_were(
    was: np.ndarray, came: np.ndarray, is_refused: bool
) -> None:
    """A transformer's mask of minus infinities is an array of its half."""
    half = ArrayRecord([was])
    content = {"arrays0": ArrayRecord([came]), "metrics": MetricRecord({"a": 1})}
    (checked,) = ReplyChecks(half).checked(replies_with([half], content))
    assert checked.has_error() == is_refused


def test_several_records_have_their_keys_in_any_order() -> None:
    half = ArrayRecord([GOOD])
    metrics = MetricRecord({"a": 1})
    keys = [("arrays0", "arrays1"), ("arrays1", "arrays0"), ("arrays0", "other")]
    replies = replies_with(
        [half, half], *({"metrics": metrics, a: half, b: half} for a, b in keys)
    )
    checked = ReplyChecks(half).checked(replies)
    assert [message.has_error() for message in checked] == [False, False, True]
    refusal = str(checked[2].error)
    assert "an ArrayRecord 'other', wanted those of the message, ['arrays0'" in refusal


def test_a_second_record_with_the_halfs_names_may_be_of_its_own_types() -> None:
    """Control variates are floats, also of what the half counts."""
    half = ArrayRecord({"count": Array(np.array(3))})
    control = ArrayRecord({"count": Array(np.array(0.5, np.float32))})
    content = {"metrics": MetricRecord({"a": 1}), "arrays0": half, "arrays1": control}
    (checked,) = ReplyChecks(half).checked(replies_with([half, control], content))
    assert not checked.has_error()


CONTROL = np.ones((2, 3), np.float32)


class Scaffold(FedAvg):
    """Sends and sums up a second record, as SCAFFOLD does its control variates."""

    def __init__(self) -> None:
        super().__init__(min_available_nodes=3, fraction_evaluate=0.0)
        self.control = np.zeros_like(CONTROL)

    def configure_train(self, *round_and_model: Any) -> Iterable[Message]:
        messages = list(super().configure_train(*round_and_model))
        for message in messages:
            control = ArrayRecord({"c": Array(self.control)})
            message.content = RecordDict({**message.content, "control": control})
        return messages

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        replies = list(replies)
        for reply in replies:
            if reply.has_content():
                self.control += reply.content.pop("control")["c"].numpy()
        return super().aggregate_train(server_round, replies)


def of_scaffold(change: Change) -> Any:
    def app(message: Message, context: Context) -> Message:
        own = copy(message)
        own.content = RecordDict(dict(message.content))
        own.content.pop("control", None)
        reply = HONEST(own, context)
        if message.metadata.message_type == "train":
            reply.content["control"] = ArrayRecord({"c": Array(CONTROL)})
            if context.node_config["partition-id"] == 1:
                change(reply)
        return reply

    return app


@pytest.mark.parametrize("model_bits", [4, 32])
def test_a_strategy_may_send_a_second_record(
    model_bits: int, caplog: pytest.LogCaptureFixture
) -> None:
    devices = Scaffold()
    app = of_scaffold(lambda reply: None)
    strategy, _ = run(app, devices, model_bits=model_bits)
    assert all(not strategy.ledger.failures(number) for number in (1, 2, 3))
    # of all devices in all rounds, exactly
    assert np.array_equal(devices.control, 9 * CONTROL)
    warned = caplog.text.count("several ArrayRecords, which travel as they are")
    assert warned == (model_bits < 32)


@pytest.mark.parametrize(
    ("control", "why"),
    [
        ({"c": CONTROL * NAN}, "'c' is not finite"),
        ({"c": CONTROL * 1e30}, r"'c' has an entry of 1e\+30"),
        ({"c": CONTROL[0]}, r"wanted float32 of shape \(2, 3\)"),
        ({"c": CONTROL.astype("U1")}, "wanted float32"),
        ({"c": np.ones(10**5)}, "'c' has 800128 bytes, at most"),
        ({}, "without 'c' of the message's 'control'"),
        ({"c": CONTROL, "d": CONTROL}, "'d' is no array of the message's 'control'"),
    ],
    ids=str,
)
def test_a_second_record_that_is_wrong_fails_its_device_alone(
    control: dict[str, np.ndarray], why: str
) -> None:
    arrays = {name: Array(values) for name, values in control.items()}
    app = of_scaffold(with_record("control", ArrayRecord(arrays)))
    devices = Scaffold()
    strategy, _ = run(app, devices)
    only_device_one_failed(strategy, why, [1, 2, 3])
    assert np.array_equal(devices.control, 6 * CONTROL)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (without("control"), "has 1 ArrayRecords, wanted 2"),
        (with_record("more", ArrayRecord()), "has 3 ArrayRecords, wanted 2"),
        (with_keys({"control": "c" * 1000}), "has an ArrayRecord 'ccc.*, wanted those"),
        (
            with_keys({"control": "arrays", "arrays": "control"}),
            "without 'c' of the message's 'control'",
        ),
        (with_arrays({WEIGHT: Array(GOOD * NAN)}), f"'{WEIGHT}' is not finite"),
    ],
    ids=["no control", "more", "another key", "the other's key", "half"],
)
def test_of_several_records_one_is_wrong(change: Change, why: str) -> None:
    devices = Scaffold()
    strategy, _ = run(of_scaffold(change), devices)
    only_device_one_failed(strategy, why, [1, 2, 3])


@pytest.mark.parametrize(
    ("classes", "refused"),
    [
        ([1, 2, 3, 4, 5], []),
        ([1, 1, 2, 3, 4], []),  # device 0 makes a pair with 1
        ([1, 1, 1, 0, 0], []),  # or a majority of those that tell one
        ([1, 0, 0, 0, 0], []),
        ([0, 1, 1, 1, 1], [0]),
        ([2, 1, 1, 1, 1], [0]),
        ([1, 0], []),
        ([2, 1], []),
    ],
    ids=str,
)
def test_device_0_decides_for_no_other_which_metrics_are_usual(
    classes: list[int], refused: list[int]
) -> None:
    """Devices tell the AUC of each of their classes, those of one class none."""
    metrics = [
        {"a": 1, "auc": [0.5] * count} if count else {"a": 1} for count in classes
    ]
    contents = [{"metrics": MetricRecord(each)} for each in metrics]
    checked = ReplyChecks(weight="a").checked(replies_with([], *contents))
    assert [node for node, each in enumerate(checked) if each.has_error()] == refused
    is_usual = bool(refused)
    for reply in checked:
        if reply.has_content():
            assert ("auc" in reply.content["metrics"]) == is_usual


class ByName(FedAvg):
    """Reads records by the keys that its devices' app gives them."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        for reply in replies:
            assert {"trained", "found"} <= reply.content.keys()
        return super().aggregate_train(server_round, replies)


def test_an_app_may_have_keys_of_its_own() -> None:
    own_keys = with_keys({"arrays": "trained", "metrics": "found"})

    def app(message: Message, context: Context) -> Message:
        reply = HONEST(message, context)
        if context.node_config["partition-id"] != 1:
            own_keys(reply)
        return reply

    devices = ByName(min_available_nodes=3, fraction_evaluate=0.0)
    strategy, _ = run(app, devices)
    only_device_one_failed(strategy, "", [])


class TurnsByFedAvg(FedAvg):
    """One device a round, in turn: no other reply shows what is usual."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Any
    ) -> Iterable[Message]:
        messages = list(super().configure_train(server_round, arrays, config, grid))
        by_node = sorted(messages, key=lambda message: message.metadata.dst_node_id)
        return [by_node[server_round - 1]]


@pytest.mark.parametrize(("change", "why"), ARRAYS[-2:] + METRICS + FRAMES)
def test_a_reply_that_is_wrong_and_the_only_one(change: Change, why: str) -> None:
    devices = TurnsByFedAvg(min_available_nodes=3, fraction_evaluate=0.0)
    strategy, _ = run(hostile(change), devices)
    only_device_one_failed(strategy, why, [2])


@pytest.mark.parametrize(
    "change",
    [
        with_metrics(steps=[1.0, 2.0]),
        with_metrics(steps=[]),
        with_metrics(steps=None),
        with_metrics(steps=None, more=1.0),
    ],
    ids=["list", "empty-list", "less", "other"],
)
def test_metrics_unlike_those_of_most_devices(change: Change) -> None:
    for kind in ("train", "evaluate"):
        devices = FedAvg(min_available_nodes=3)
        strategy, result = run(hostile(change, kind), devices)
        only_device_one_failed(strategy, "unlike those of most devices", [1, 2, 3])
        assert len(result.train_metrics_clientapp) == 3
        assert len(result.evaluate_metrics_clientapp) == 3


def test_metrics_beside_those_of_most_devices_are_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    more = {f"{number}{'x' * 90}": 1.0 for number in range(100)}
    for kind in ("train", "evaluate"):
        caplog.clear()
        devices = FedAvg(min_available_nodes=3)
        strategy, result = run(hostile(with_metrics(**more), kind), devices)
        only_device_one_failed(strategy, "", [])
        for metrics in (
            *result.train_metrics_clientapp.values(),
            *result.evaluate_metrics_clientapp.values(),
        ):
            assert not metrics.keys() & more.keys()
            assert "num-examples" in metrics
        lines = [line for line in caplog.messages if "They are left out" in line]
        assert len(lines) == 3
        for line in lines:
            assert "node 1001 has" in line
            assert "0xxx" in line
            assert len(line) < 500


@pytest.mark.parametrize(
    "change",
    [
        with_metrics(more=1.0),
        with_metrics(train_loss=[1.0, 2.0]),
        with_metrics(steps=None),
        with_metrics(steps=None, more=1.0),
        with_keys({"metrics": "more"}),
        with_keys({"arrays": "more"}),
        with_keys({"metrics": "arrays", "arrays": "metrics"}),
        hide_metrics,
    ],
    ids=["more", "list", "less", "other", "key", "array-key", "swapped", "hidden"],
)
@pytest.mark.parametrize("device", [0, 1])
def test_of_two_devices_neither_says_alone_what_is_usual(
    change: Change, device: int
) -> None:
    def app(message: Message, context: Context) -> Message:
        reply = HONEST(message, context)
        is_other = context.node_config["partition-id"] == device
        if is_other and message.metadata.message_type in ("train", "evaluate"):
            change(reply)
        return reply

    strategy = make(FedAvg(min_available_nodes=2))
    arrays = ArrayRecord(seeded(DeviceHalf).state_dict())
    result = strategy.start(LocalGrid(app, 2), arrays, 2)
    assert [strategy.ledger.failures(number) for number in (1, 2)] == [{}, {}]
    for number in (1, 2):
        assert "more" not in result.train_metrics_clientapp[number]
        assert "more" not in result.evaluate_metrics_clientapp[number]


NO_COUNTS = [NAN, np.inf, -3, 2.5, 1e300]


@pytest.mark.parametrize(
    ("steps", "counted"), [(2.0, 2), *((no, 0) for no in NO_COUNTS)]
)
def test_steps_that_are_no_count(steps: float, counted: int, tmp_path: Path) -> None:
    """In a run of the whole model devices are all that know them."""
    honest = SplitClientApp(
        DeviceHalf,
        lambda context: (batches(2), batches(1)),
        ADAM,
        server_model=ServerHalf,
        loss_fn=nn.functional.cross_entropy,
    )

    def app(message: Message, context: Context) -> Message:
        reply = honest(message, context)
        if context.node_config["partition-id"] == 1:
            reply.content.metric_records["metrics"]["steps"] = steps
        return reply

    arrays = ArrayRecord(
        JoinedModel(seeded(DeviceHalf), seeded(ServerHalf)).state_dict()
    )
    progress = Progress(1, Ledger())
    checks = ReplyChecks(arrays, "num-examples")
    grid = MeteredGrid(LocalGrid(app, 3), progress.ledger, checks)
    together().start(grid, arrays, 1, evaluate_fn=progress.watch(None))
    progress.write(tmp_path / "results.json")
    (row,) = json.loads((tmp_path / "results.json").read_text())["rounds"]
    assert Round.from_json(row).steps == 4 + counted


@pytest.mark.parametrize(
    ("reported", "loss_rows"),
    [
        ({"num_examples": 48.0}, 144),
        ({"num_examples": 47.5}, 96),
        ({"train_loss": NAN}, 144),
        ({"train_loss": np.inf}, 144),
        ({"train_loss": 1.7e308}, 144),
    ],
    ids=str,
)
def test_a_loss_that_devices_report_leaves_a_checkpoint_and_results(
    reported: dict[str, float], loss_rows: int, tmp_path: Path
) -> None:
    """With the last layers on devices the loss is what they say it is."""
    tail = partial(nn.Linear, 32, 4)
    honest = SplitClientApp(
        DeviceHalf,
        lambda context: (batches(3), batches(1)),
        ADAM,
        tail=tail,
        loss_fn=nn.functional.cross_entropy,
    )
    change = with_metrics(**reported)

    def app(message: Message, context: Context) -> Message:
        reply = honest(message, context)
        is_device_one = context.node_config["partition-id"] == 1
        if is_device_one and message.metadata.message_type == "train":
            change(reply)
        return reply

    def make_middle() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU())

    arrays = ArrayRecord(HeadAndTail(seeded(DeviceHalf), seeded(tail)).state_dict())
    for rounds in (1, 2):
        strategy = SplitLearning(
            seeded(make_middle),
            None,
            ADAM,
            device="cpu",
            devices=together(),
            checkpoint=tmp_path,
        )
        strategy.start(LocalGrid(app, 3), arrays, rounds)
        assert strategy.ledger.of(1, "train").loss_rows == loss_rows
        strategy.progress.write(tmp_path / "results.json")
        rows = json.loads((tmp_path / "results.json").read_text())["rounds"]
        is_told = "train_loss" not in reported
        for done in (*strategy.progress.rounds, *map(Round.from_json, rows)):
            assert (done.loss is not None) == is_told


@pytest.mark.parametrize(("change", "why"), METRICS)
def test_wrong_metrics_of_an_evaluation(change: Change, why: str) -> None:
    devices = RoundRobin(min_available_nodes=3, min_evaluate_nodes=3)
    strategy, result = run(hostile(change, "evaluate"), devices)
    only_device_one_failed(strategy, why, [1, 2, 3])
    assert len(result.evaluate_metrics_clientapp) == 3


def test_an_accuracy_that_is_no_number() -> None:
    app = SplitClientApp(
        DeviceHalf,
        lambda context: (batches(3), batches(1)),
        ADAM,
        metrics_fn=lambda outputs, labels: {"eval_acc": 1.0},
    )

    def lists(message: Message, context: Context) -> Message:
        reply = app(message, context)
        if message.metadata.message_type == "evaluate":
            reply.content.metric_records["metrics"]["eval_acc"] = [1.0, 2.0]
        return reply

    strategy, _ = run(lists, FedAvg(min_available_nodes=3))
    assert [row["device_accuracy"] for row in strategy.progress.rows] == [None] * 3


def evaluated(values: list[float], devices: Strategy, name: str = "eval_acc") -> float:
    """Return what a run finds where each device reports one of the values."""

    def app(message: Message, context: Context) -> Message:
        reply = HONEST(message, context)
        if message.metadata.message_type == "evaluate":
            metrics = reply.content.metric_records["metrics"]
            metrics[name] = values[context.node_config["partition-id"]]
            metrics["num-examples"] = 1 + context.node_config["partition-id"]
        return reply

    strategy = make(devices)
    arrays = ArrayRecord(seeded(DeviceHalf).state_dict())
    result = strategy.start(LocalGrid(app, len(values)), arrays, 1)
    assert strategy.ledger.failures(1) == {}
    return result.evaluate_metrics_clientapp[1][name]


@pytest.mark.parametrize(
    ("name", "values", "mean"),
    [
        ("eval_acc", [0.25, NAN, 0.75], 0.625),
        ("eval_acc", [0.25, 1e6, 0.75], 0.625),
        ("eval_acc", [0.25, -1e300, 0.75], 0.625),
        ("accuracy", [0.25, 1e6, 0.75], 0.625),
        ("auc", [0.25, NAN, 0.75], 0.625),
        ("auc", [0.25, -np.inf, 0.75], 0.625),
    ],
    ids=str,
)
def test_a_mean_leaves_out_what_is_no_number_of_its_kind(
    name: str, values: list[float], mean: float, caplog: pytest.LogCaptureFixture
) -> None:
    """The others weigh 1 and 3."""
    found = evaluated(values, FedAvg(min_available_nodes=3), name)
    assert found == pytest.approx(mean)
    assert f"mean of '{name}' in round 1 leaves out" in caplog.text
    assert f"{{1001: {values[1]}}}" in caplog.text


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("eval_acc", [25.0, 0.5, 75.0]),  # in per cent
        ("eval_acc", [0.5, 1.0000000000000002, 0.5]),  # of a perfect device, summed
        ("eval_acc", [0.8, 1.0, 1.6]),  # in per cent, by chance, of 100 classes
        ("eval_acc", [25.0, 75.0]),
        ("eval_acc", [0.5, 75.0]),  # of two, neither says alone what it is
        ("eval_acc", [NAN, NAN, NAN]),
        ("score", [0.5, 1e6, 0.5]),
    ],
    ids=str,
)
def test_a_mean_is_over_what_may_be_meant(
    name: str, values: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    weights = range(1, len(values) + 1)
    found = evaluated(values, FedAvg(min_available_nodes=len(values)), name)
    assert found == pytest.approx(np.average(values, weights=weights), nan_ok=True)
    assert "leaves out" not in caplog.text


def test_a_function_of_ones_own_gets_all_values() -> None:
    def worst(contents: list[RecordDict], weighted_by: str) -> MetricRecord:
        values = [content["metrics"]["eval_acc"] for content in contents]
        return MetricRecord({"eval_acc": float(np.min(values))})

    devices = FedAvg(min_available_nodes=3, evaluate_metrics_aggr_fn=worst)
    assert np.isnan(evaluated([0.25, NAN, 0.75], devices))


class LeastAccuracy(FedAvg):
    """Passes over values that are not finite."""

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        records = [reply.content["metrics"] for reply in replies]
        accuracies = [record["eval_acc"] for record in records]
        return MetricRecord({"eval_acc": float(np.nanmin(accuracies))})


def test_a_strategy_of_ones_own_gets_all_values() -> None:
    devices = LeastAccuracy(min_available_nodes=3)
    assert evaluated([0.25, NAN, 0.75], devices) == 0.25


def test_frames_that_are_none_in_messages() -> None:
    empty = with_record(FRAME_KEY, ConfigRecord())
    endpoint = EndpointConfig(transport="messages")
    strategy, _ = run(hostile(empty), in_turn(), endpoint=endpoint)
    only_device_one_failed(strategy, "record of a frame holds none", [2])


@pytest.mark.parametrize(
    "name", ["9" * 5000, "\x1b[2J\n", "", "x" * 101, 7, ["0"], b"0"]
)
def test_a_name_that_is_none_leaves_the_node_to_its_id(
    name: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def rename(reply: Message) -> None:
        reply.content["device-name"] = ConfigRecord({"device-name": name})

    strategy, _ = run(hostile(rename, "query.split_device"), together())
    assert strategy.ledger.devices().keys() == {"0", "2", "1001"}
    assert "node 1001 goes by its id" in caplog.text
    assert "\x1b" not in caplog.text


@pytest.mark.parametrize(
    "change",
    [
        lambda reply: _set_content(reply, RecordDict()),
        lambda reply: _error(reply, "\x1b[2Jno\x1b[2J"),
    ],
    ids=["nothing", "error"],
)
def test_a_query_without_an_answer(
    change: Change, caplog: pytest.LogCaptureFixture
) -> None:
    strategy, _ = run(hostile(change, "query.split_device"), together())
    assert strategy.ledger.devices().keys() == {"0", "2", "1001"}
    assert "\x1b" not in caplog.text


def _set_content(reply: Message, content: RecordDict) -> None:
    reply.content = content


class Wire(LocalGrid):
    """Replies come as Flower's bytes, those of device 1 with a broken array."""

    broken_type = "train"
    broken_by = b"["

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [
            self._off_the_wire(reply) for reply in super().pull_messages(message_ids)
        ]

    def _off_the_wire(self, reply: Message) -> Message:
        objects = get_all_nested_objects(reply)
        contents = {key: each.deflate() for key, each in objects.items()}
        is_device_one = reply.metadata.src_node_id == 1001
        if is_device_one and reply.metadata.message_type == self.broken_type:
            for key, each in objects.items():
                if not isinstance(each, Message):
                    contents[key] = contents[key].replace(b"{", self.broken_by)
        read = inflate_object_from_contents(reply.object_id, contents)
        assert isinstance(read, Message)
        read.metadata.__dict__["_message_id"] = reply.metadata.message_id
        return read


@pytest.mark.parametrize("devices", [in_turn, together])
@pytest.mark.parametrize("broken_by", [b"[", b"[" * 100_000], ids=["one", "deep"])
@pytest.mark.parametrize("broken_type", ["train", "query.split_device"])
def test_messages_that_flower_cannot_read(
    broken_type: str,
    broken_by: bytes,
    devices: Callable[[], Strategy],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What comes at the same time is lost with one that is pulled with it."""
    grid = Wire(HONEST, 3)
    grid.broken_type = broken_type
    grid.broken_by = broken_by
    strategy = make(devices())
    strategy.start(grid, ArrayRecord(seeded(DeviceHalf).state_dict()), 3)
    assert "cannot be read" in caplog.text
    is_in_turn = isinstance(strategy.devices, RoundRobin)
    if broken_type == "train":
        rounds = [2] if is_in_turn else [1, 2, 3]
        only_device_one_failed(strategy, "its reply cannot be read", rounds)
    else:
        assert strategy.ledger.devices().keys() == {"0", "1001", "2"}
        assert strategy.ledger.total("train").steps == (9 if is_in_turn else 27)
