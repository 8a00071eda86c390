"""Any Flower strategy with coded models: `ModelCodecGrid`, `model_codec_mod`."""

import gc
import time
import weakref
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam, FedAvg, FedProx, Strategy

from flwr_splitfc import ModelCodecGrid, model_codec_mod
from flwr_splitfc.codec.model_codec import ModelCodec
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.whole_numbers import with_whole_numbers
from tests.local_grid import LocalGrid

KERNEL = np.random.default_rng(0).normal(size=(20, 50)).astype(np.float32)
BIAS = np.arange(10, dtype=np.float32)
COUNT = np.array(7)
STEPS = {
    name: np.random.default_rng(1).normal(size=values.shape)
    for name, values in {"kernel": KERNEL, "bias": BIAS}.items()
}


def model() -> ArrayRecord:
    return ArrayRecord(
        {"kernel": Array(KERNEL), "bias": Array(BIAS), "count": Array(COUNT)}
    )


class Adder:
    """An app that adds its number times `STEPS` to all floats, and notes what it saw."""

    def __init__(self, *, with_mod: bool = True) -> None:
        self.seen: list[RecordDict] = []
        self.app = ClientApp(mods=[model_codec_mod] if with_mod else [])
        self.app.train()(self.train)
        self.app.evaluate()(self.evaluate)

    def train(self, message: Message, context: Context) -> Message:
        self.seen.append(message.content)
        number = context.node_config["partition-id"] + 1
        trained = ArrayRecord()
        for name, array in message.content["arrays"].items():
            values = array.numpy()
            moved = values + number * STEPS.get(name, 1)
            trained[name] = Array(np.asarray(moved, values.dtype))
        metrics = MetricRecord({"num-examples": 1})
        content = RecordDict({"arrays": trained, "metrics": metrics})
        return Message(content, reply_to=message)

    def evaluate(self, message: Message, context: Context) -> Message:
        self.seen.append(message.content)
        metrics = MetricRecord({"num-examples": 1, "accuracy": 1.0})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)


class Wire(LocalGrid):
    """A grid that notes what crosses it in each direction."""

    def __init__(self, app: ClientApp, num_devices: int) -> None:
        super().__init__(app, num_devices, workers=0)
        self.down: list[RecordDict] = []
        self.up: list[RecordDict] = []

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        sent = list(messages)
        self.down += [message.content for message in sent]
        return super().push_messages(sent)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(super().pull_messages(message_ids))
        self.up += [reply.content for reply in replies if reply.has_content()]
        return replies


def run(
    strategy: Strategy | None = None,
    bits: int | ModelCodec = 4,
    rounds: int = 1,
    app: Adder | None = None,
    devices: int = 3,
) -> tuple[ArrayRecord, Adder, Wire]:
    app = app or Adder()
    wire = Wire(app.app, devices)
    result = (strategy or fedavg()).start(ModelCodecGrid(wire, bits), model(), rounds)
    return result.arrays, app, wire


def fedavg(devices: int = 3, kind: type[FedAvg] = FedAvg, **options: float) -> FedAvg:
    return kind(
        min_available_nodes=devices,
        min_train_nodes=devices,
        min_evaluate_nodes=devices,
        **options,
    )


def bytes_of(contents: Iterable[RecordDict]) -> int:
    return sum(
        len(array.data)
        for content in contents
        for record in content.array_records.values()
        for array in record.values()
    )


def test_the_average_is_that_of_float32_but_for_the_changes_precision():
    exact, _, _ = run(bits=32)
    coded, _, _ = run(bits=8)
    change = exact["kernel"].numpy() - KERNEL
    error = coded["kernel"].numpy() - exact["kernel"].numpy()
    # a step of rms / 64 makes an error of rms / 222
    assert np.sqrt((error**2).mean()) < 0.006 * np.sqrt((change**2).mean())
    # small arrays and integers are exact
    np.testing.assert_array_equal(coded["bias"].numpy(), exact["bias"].numpy())
    np.testing.assert_array_equal(coded["count"].numpy(), exact["count"].numpy())


def test_32_bits_are_float32_bit_for_bit():
    # one device: averages depend on the order of replies
    plain = fedavg(1).start(LocalGrid(Adder().app, 1, workers=0), model(), 2).arrays
    exact, _, wire = run(fedavg(1), bits=32, rounds=2, devices=1)
    for name, array in plain.items():
        np.testing.assert_array_equal(array.numpy(), exact[name].numpy())
    assert wire.down[-1]["arrays"]["kernel"].stype == "numpy.ndarray"


@pytest.mark.parametrize("bits", [8, 4])
def test_fewer_bits_are_fewer_bytes(bits):
    _, _, exact = run(bits=32)
    _, _, coded = run(bits=bits)
    # arrays take about `bits` of 32, and the small ones are exact
    assert bytes_of(coded.down) < 1.4 * bits / 32 * bytes_of(exact.down)
    assert bytes_of(coded.up) < 1.4 * bits / 32 * bytes_of(exact.up)


def test_the_app_and_the_strategy_see_float32_and_no_record_of_ours():
    arrays, app, _ = run()
    assert {array.stype for array in arrays.values()} == {"numpy.ndarray"}
    trained = [content for content in app.seen if "arrays" in content]
    for content in trained:
        assert set(content) == {"arrays", "config"}
        assert {a.stype for a in content["arrays"].values()} == {"numpy.ndarray"}


@pytest.mark.parametrize(
    "strategy",
    [fedavg(), fedavg(kind=FedProx, proximal_mu=0.1), fedavg(kind=FedAdam, eta=0.01)],
    ids=["FedAvg", "FedProx", "FedAdam"],
)
def test_flowers_strategies_run_as_they_are(strategy):
    arrays, app, _ = run(strategy, rounds=2)
    assert arrays["kernel"].numpy().shape == KERNEL.shape
    # three devices train and evaluate in each round
    assert len(app.seen) == 12


def test_a_device_without_the_mod_fails_and_says_why(caplog):
    arrays, _, _ = run(app=Adder(with_mod=False))
    assert not arrays
    assert "Unsupported serialization type" in caplog.text
    assert "model/1" in caplog.text


def cut_short(data: bytes) -> bytes:
    return data[:-1]


def coded_scalar(data: bytes) -> bytes:
    """A float of no dimension, as a learnable scale is, in no bytes."""
    model = pb.Model.FromString(data)
    (scale,) = [array for array in model.arrays if array.name == "scale"]
    scale.coding = pb.ARRAY_UNIFORM
    scale.data = b""
    return model.SerializeToString()


def with_scale() -> ArrayRecord:
    return ArrayRecord({**model(), "scale": Array(np.array(1.0))})


@pytest.mark.parametrize("change", [cut_short, coded_scalar])
def test_a_reply_that_cannot_be_decoded_fails_its_device_alone(change):
    honest = Adder()

    def app(message: Message, context: Context) -> Message:
        reply = honest.app(message, context)
        if context.node_id == 1001 and "arrays" in reply.content:
            coded = reply.content["arrays"]["model"]
            coded.data = change(coded.data)
        return reply

    strategy = fedavg()
    replies = []
    inner = strategy.aggregate_train

    def aggregate_train(server_round, came):
        replies.extend(came)
        return inner(server_round, replies)

    strategy.aggregate_train = aggregate_train
    grid = ModelCodecGrid(LocalGrid(app, 3, workers=0))
    result = strategy.start(grid, with_scale(), 1)
    failed = [reply for reply in replies if reply.has_error()]
    assert [reply.metadata.src_node_id for reply in failed] == [1001]
    assert "the model in the reply" in failed[0].error.reason
    moved = result.arrays["kernel"].numpy() - KERNEL
    # the devices that are left add STEPS once and three times
    assert np.abs(moved - 2 * STEPS["kernel"]).mean() < 0.2


def test_an_error_that_nobody_knows_fails_one_device_and_is_logged(monkeypatch, caplog):
    """Who finds a fault of this package must not end the run of the others by it."""
    decode_changes = ModelCodec.decode_changes
    calls = []

    def faulty(codec, *given):
        calls.append(given)
        if len(calls) == 1:
            raise ZeroDivisionError("a fault")
        return decode_changes(codec, *given)

    monkeypatch.setattr(ModelCodec, "decode_changes", faulty)
    arrays, _, _ = run()
    assert arrays
    assert len(calls) == 3
    assert "The server failed in decoding a reply" in caplog.text
    assert "Traceback" in caplog.text


def test_weights_and_changes_have_bits_of_their_own():
    codec = ModelCodec(weights=8, changes=2)
    _, _, wire = run(bits=codec)
    down = len(wire.down[-1]["arrays"]["model"].data)
    up = len(next(c for c in wire.up if "arrays" in c)["arrays"]["model"].data)
    assert up < down / 2


def test_messages_are_coded_in_push_and_pull_as_well():
    app = Adder()
    wire = Wire(app.app, 1)
    grid = ModelCodecGrid(wire, 8)
    content = RecordDict({"arrays": model()})
    message = Message(content, 1000, "train")
    (message_id,) = grid.push_messages([message])
    (reply,) = grid.pull_messages([message_id])
    moved = reply.content["arrays"]["kernel"].numpy() - KERNEL
    assert np.abs(moved - STEPS["kernel"]).max() < 0.01
    assert wire.down[-1]["arrays"]["model"].stype == "model/1"


class FirstNodeIsGone(LocalGrid):
    """Gives no id for the first message, as Flower for one whose node is gone."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        first, *others = messages
        first.metadata.__dict__["_message_id"] = "of nobody"
        return super().push_messages(others)


def test_a_gone_node_leaves_the_replies_of_others_right() -> None:
    grid = ModelCodecGrid(FirstNodeIsGone(Adder().app, 2, workers=0), 8)
    far = ArrayRecord({"kernel": Array(KERNEL + 100)})
    gone = Message(RecordDict({"arrays": far}), 1000, "train")
    there = Message(RecordDict({"arrays": model()}), 1001, "train")
    (reply,) = grid.pull_messages(grid.push_messages([gone, there]))
    moved = reply.content["arrays"]["kernel"].numpy() - KERNEL
    assert np.abs(moved - 2 * STEPS["kernel"]).max() < 0.02
    held = weakref.ref(gone)
    del gone
    gc.collect()
    assert held() is None


def test_a_reply_that_is_never_pulled_keeps_no_model_for_good():
    grid = ModelCodecGrid(LocalGrid(Adder().app, 1, workers=0))
    content = RecordDict({"arrays": model()})
    short = Message(content, 1000, "train", ttl=0.2)
    long = Message(content, 1000, "train", ttl=1000.0)
    list(grid.push_messages([short]))
    held = weakref.ref(short)
    del short
    gc.collect()
    assert held() is not None
    time.sleep(0.3)
    awaited = list(grid.push_messages([long]))
    gc.collect()
    assert held() is None
    (reply,) = grid.pull_messages(awaited)
    assert reply.content["arrays"]["kernel"].numpy().shape == KERNEL.shape


@pytest.mark.parametrize("way", ["send_and_receive", "push_messages"])
def test_a_model_that_is_changed_in_place_is_coded_anew(way: str) -> None:
    wire = Wire(Adder().app, 1)
    grid = ModelCodecGrid(wire, 8)
    arrays = model()
    sent = []
    for factor in (1, 2):
        arrays["kernel"] = Array(factor * KERNEL)
        list(
            getattr(grid, way)([Message(RecordDict({"arrays": arrays}), 1000, "train")])
        )
        sent.append(wire.down[-1]["arrays"]["model"].data)
    assert sent[0] != sent[1]


def test_the_model_is_trained_with_torch(tmp_path):
    """A linear regression: 4 bits reach what 32 reach."""
    torch.manual_seed(0)
    truth = torch.randn(16, 8)
    data = torch.randn(64, 16)

    def train(message: Message, context: Context) -> Message:
        half = torch.nn.Linear(16, 8, bias=False)
        half.load_state_dict(message.content["arrays"].to_torch_state_dict())
        optimizer = torch.optim.SGD(half.parameters(), lr=0.5)
        for _ in range(5):
            optimizer.zero_grad()
            (half(data) - data @ truth).square().mean().backward()
            optimizer.step()
        metrics = MetricRecord({"num-examples": 64})
        arrays = ArrayRecord(half.state_dict())
        content = RecordDict({"arrays": arrays, "metrics": metrics})
        return Message(content, reply_to=message)

    app = ClientApp(mods=[model_codec_mod])
    app.train()(train)
    strategy = fedavg(fraction_evaluate=0.0)
    start = ArrayRecord({"weight": Array(np.zeros((8, 16), np.float32))})
    errors = {}
    for bits in (32, 4):
        grid = ModelCodecGrid(LocalGrid(app, 3, workers=0), bits)
        arrays = strategy.start(grid, start, 20).arrays
        weight = torch.from_numpy(arrays["weight"].numpy())
        errors[bits] = float((weight - truth.T).square().mean())
    at_start = float(truth.square().mean())
    # each round leaves the 4 bits' share of the change, which shrinks round by round
    assert errors[4] < 1e-2 * at_start
    assert errors[32] < 1e-2 * at_start


def test_averages_beyond_their_type_are_its_greatest_and_least():
    types = [np.uint8, np.int8, np.int64, np.bool_]
    before = ArrayRecord([np.array([1, 0], dtype) for dtype in types])
    means = [np.array([1e30, -1e30])] * len(types)
    kept = with_whole_numbers(ArrayRecord(means), before)
    found = [array.numpy().tolist() for array in kept.values()]
    assert found == [[255, 0], [127, -128], [2**63 - 1, -(2**63)], [True, False]]


def test_floats_of_another_model_are_no_averages_of_whole_numbers():
    grid = ModelCodecGrid(LocalGrid(Adder().app, 3, workers=0), 8)
    arrays = ArrayRecord({"kernel": Array((100 * KERNEL).astype(np.int32))})
    fedavg().start(grid, arrays, 1)
    result = fedavg().start(grid, model(), 1)
    assert result.arrays["kernel"].dtype == "float32"
    assert len(np.unique(result.arrays["kernel"].numpy())) > 100


def test_whole_numbers_stay_such_though_the_strategy_averages_them():
    table = np.random.default_rng(2).integers(0, 49, (49, 49))
    table[0, 0] = np.iinfo(np.int64).max  # as one that means none
    mask = table % 2 == 0
    seen = []
    app = ClientApp(mods=[model_codec_mod])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        arrays = message.content["arrays"]
        seen.append(arrays)
        # two devices of three count one more in each round
        count = np.asarray(arrays["count"].numpy() + (len(seen) % 3 > 0))
        content = {
            "arrays": ArrayRecord({**arrays, "count": Array(count)}),
            "metrics": MetricRecord({"num-examples": 7}),
        }
        return Message(RecordDict(content), reply_to=message)

    arrays = ArrayRecord(
        {"table": Array(table), "mask": Array(mask), "count": Array(np.array(0))}
    )
    grid = ModelCodecGrid(LocalGrid(app, 3, workers=0), 8)
    fedavg(fraction_evaluate=0.0).start(grid, arrays, 4)
    assert len(seen) == 12
    for each in seen:
        np.testing.assert_array_equal(each["table"].numpy(), table, strict=True)
        np.testing.assert_array_equal(each["mask"].numpy(), mask, strict=True)
    counts = [each["count"].numpy() for each in seen[::3]]
    np.testing.assert_array_equal(counts, range(4), strict=True)


def test_tables_that_training_leaves_alone_go_exactly_from_round_2_on():
    """One may be logarithms', or compared, and another function when it is coded."""
    table = np.random.default_rng(3).uniform(1e-3, 1, (40, 20)).astype(np.float32)
    mask = (table > 0.5).astype(np.float32)
    app = Adder()

    def start(server_round: int) -> ArrayRecord:
        content = app.seen[3 * (server_round - 1)]
        return content["arrays"]

    arrays = ArrayRecord({**model(), "table": Array(table), "mask": Array(mask)})
    grid = ModelCodecGrid(LocalGrid(still(app), 3, workers=0), 4)
    result = fedavg(fraction_evaluate=0.0).start(grid, arrays, 3)
    for server_round in (1, 2, 3):
        np.testing.assert_array_equal(start(server_round)["mask"].numpy(), mask)
    assert not np.array_equal(start(1)["table"].numpy(), table)
    for server_round in (2, 3):
        seen = start(server_round)["table"].numpy()
        np.testing.assert_allclose(seen, table, rtol=1e-6)
        # what trains is coded
        assert len(np.unique(start(server_round)["kernel"].numpy())) < 100
    np.testing.assert_allclose(result.arrays["table"].numpy(), table, rtol=1e-6)


def still(adder: Adder) -> ClientApp:
    """The app of an adder, whose tables and masks stay as they are."""
    app = ClientApp(mods=[model_codec_mod])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        reply = adder.train(message, context)
        sent = message.content["arrays"]
        kept = {name: sent[name] for name in ("table", "mask")}
        trained = ArrayRecord({**reply.content["arrays"], **kept})
        reply.content = RecordDict({**reply.content, "arrays": trained})
        return reply

    return app
