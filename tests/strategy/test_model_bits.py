"""Device halves and their optimizer's state travel coded: `model_bits`."""

from functools import partial
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod
from flwr.serverapp.strategy import FedAvg
from torch import nn

from flwr_splitfc import (
    DeviceApp,
    EndpointConfig,
    ModelCodec,
    RoundRobin,
    SplitClientApp,
    SplitFC,
    SplitFedV1,
    SplitFedV2,
    SplitLearning,
    answer_device_query,
    connect,
    model_codec_mod,
)
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.frames import server_frame
from flwr_splitfc.exchange.protocol.split_errors import StateRefused
from flwr_splitfc.exchange.server.turn.relayed_state import check_relayed
from tests.halves import ServerHalf, batches, same, seeded
from tests.local_grid import LocalGrid

ADAM = partial(torch.optim.Adam, lr=1e-2)


class DeviceHalf(nn.Sequential):
    """A wide one, so that it outweighs what describes it."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 64, 3, padding=1),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.Conv2d(64, 4, 3, padding=1),
            nn.MaxPool2d(2),
        )


def load_data(context: Context) -> Any:
    data = batches(5, seed=context.node_config["partition-id"])
    return data, data


def app(optimizer: Any = ADAM) -> SplitClientApp:
    return SplitClientApp(DeviceHalf, load_data, optimizer)


def run(client: Any = None, rounds: int = 4, **options: Any) -> tuple[Any, Any]:
    options = {"codec": "float16", **options}
    options.setdefault("devices", RoundRobin(min_available_nodes=2))
    strategy = SplitLearning(
        seeded(ServerHalf), nn.CrossEntropyLoss(), ADAM, device="cpu", **options
    )
    arrays = ArrayRecord(seeded(DeviceHalf).state_dict())
    grid = LocalGrid(client or app(), 2, workers=0)
    return strategy, strategy.start(grid, arrays, rounds)


def moved(strategy: SplitLearning, kind: str) -> tuple[int, int]:
    total = strategy.ledger.total("train")
    return total.uplink_bytes[kind], total.downlink_bytes[kind]


def test_the_default_codes_models_where_the_cut_is_coded() -> None:
    cross_entropy = nn.CrossEntropyLoss()
    exact = SplitLearning(ServerHalf(), cross_entropy, ADAM)
    assert exact.model_codec == ModelCodec(32, 32, 32)
    precise = SplitFC(ServerHalf(), cross_entropy, ADAM)
    assert precise.model_codec == ModelCodec(weights=6, changes=5, state=4)
    within_budgets = SplitFC(ServerHalf(), cross_entropy, ADAM, uplink_bits=0.2)
    assert within_budgets.model_codec == ModelCodec(weights=4, changes=3, state=3)
    for codec in ("float16", "int8"):
        no_budget = SplitLearning(ServerHalf(), cross_entropy, ADAM, codec=codec)
        assert no_budget.model_codec == precise.model_codec
    given = SplitFC(ServerHalf(), cross_entropy, ADAM, model_bits=8)
    assert given.model_codec == ModelCodec(8, 8, 8)
    with pytest.raises(ValueError, match="weights: bits must be 2 to 16, or 32"):
        SplitFC(ServerHalf(), cross_entropy, ADAM, model_bits=1)


@pytest.mark.parametrize("bits", [8, 4])
def test_models_and_state_take_as_many_bits(bits: int) -> None:
    exact, _ = run(model_bits=32)
    coded, result = run(model_bits=bits)
    for kind in ("model", "state"):
        for ours, theirs in zip(moved(coded, kind), moved(exact, kind), strict=True):
            # beside the bits, names and shapes of a small model
            assert ours < (1.1 * bits / 32 + 0.1) * theirs
    accuracy = result.evaluate_metrics_clientapp
    assert set(accuracy) == {1, 2, 3, 4}
    assert coded.ledger.failures(4) == {}


def test_a_run_repeats_bit_for_bit() -> None:
    one, result = run(model_bits=4)
    other, other_result = run(model_bits=4)
    assert one.ledger.digest() == other.ledger.digest()
    device = result.arrays.to_torch_state_dict()
    assert same(device, other_result.arrays.to_torch_state_dict())


class StateSeen:
    """An app that notes the optimizer state with which each turn begins."""

    def __init__(self, optimizer: Any = ADAM) -> None:
        self.inner = app(optimizer=optimizer)
        self.turns: list[list[pb.Tensor]] = []

    def __call__(self, message: Message, context: Context) -> Message:
        frame = server_frame(message)
        if message.metadata.message_type == "train" and frame.number == 0:
            self.turns.append(list(frame.kept.optimizer))
        reply: Message = self.inner(message, context)
        return reply


def test_state_is_rounded_alike_in_runs_and_over_transports() -> None:
    states = []
    for transport in ("stream", "stream", "messages"):
        client = StateSeen()
        run(client, model_bits=4, endpoint=EndpointConfig(transport=transport))
        states.append(client.turns)
    assert states[0] == states[1] == states[2]
    assert any(tensor.coding == pb.ARRAY_LOG for tensor in states[0][-1])


def test_a_variance_of_two_moments_goes_exactly(caplog: Any) -> None:
    """`square_avg` less the square of `grad_avg`, in RMSprop's own step."""
    client = StateSeen(partial(torch.optim.RMSprop, lr=1e-3, centered=True))
    run(client, rounds=3, model_bits=4)
    assert all(tensor.coding == pb.ARRAY_EXACT for tensor in client.turns[-1])
    assert {tensor.name for tensor in client.turns[-1]} >= {
        "0.square_avg",
        "0.grad_avg",
    }
    assert "starts afresh" not in caplog.text


@pytest.mark.parametrize(
    ("optimizer", "maximum"),
    [(torch.optim.Adamax, "exp_inf"), (partial(ADAM, amsgrad=True), "max_exp_avg_sq")],
)
def test_a_maximum_of_all_turns_goes_exactly(optimizer: Any, maximum: str) -> None:
    client = StateSeen(optimizer)
    run(client, rounds=3, model_bits=4)
    codings = {tensor.name: tensor.coding for tensor in client.turns[-1]}
    assert codings[f"0.{maximum}"] == pb.ARRAY_EXACT
    assert codings["0.exp_avg"] != pb.ARRAY_EXACT


def test_averages_of_coded_halves_and_of_batch_counts() -> None:
    """FedAvg makes floats of BatchNorm's counts; devices go on with integers."""
    average = FedAvg(min_available_nodes=2, fraction_evaluate=0.0)
    strategy, result = run(model_bits=4, devices=average)
    assert strategy.ledger.failures(4) == {}
    assert strategy.ledger.total("train").steps == 2 * 4 * 5
    assert float(result.arrays["1.num_batches_tracked"].numpy()) == 20


def own_loop(message: Message, context: Context) -> Message:
    half = DeviceHalf()
    half.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimizer = ADAM(half.parameters())
    with connect(message, context, optimizer=optimizer) as server:
        for x, y in load_data(context)[0]:
            optimizer.zero_grad()
            server.loss(half(x), y).backward()
            optimizer.step()
        metrics = server.metrics()
    arrays = ArrayRecord(half.state_dict())
    content = {"arrays": arrays, "metrics": MetricRecord(metrics)}
    return Message(RecordDict(content), reply_to=message)


def own_app(mods: list[Any], train_mods: list[Any]) -> ClientApp:
    client = ClientApp(mods=mods)
    client.train(mods=train_mods)(own_loop)
    client.query("split_device")(answer_device_query)
    return client


IN_TURN = RoundRobin(min_available_nodes=2, fraction_evaluate=0.0)


def test_a_loop_of_ones_own_with_the_mod_and_without(caplog: Any) -> None:
    models = []
    for mods in ([model_codec_mod], []):
        strategy, _ = run(own_app(mods, []), model_bits=4, devices=IN_TURN)
        assert strategy.ledger.total("train").steps == 20
        assert all(not strategy.ledger.failures(number) for number in range(1, 5))
        models.append(moved(strategy, "model"))
    with_mod, without = models
    assert max(with_mod) < 0.3 * min(without)
    assert caplog.text.count("no flwr_splitfc.model_codec_mod among its mods") == 1


def test_without_the_query_nobody_says_that_the_mod_is_missing(caplog: Any) -> None:
    client = ClientApp(mods=[model_codec_mod])
    client.train()(own_loop)
    run(client, model_bits=4, devices=IN_TURN)
    assert caplog.text.count("did not answer the query by which a ClientApp says") == 1
    assert "among its mods" not in caplog.text


def raises(message: Message) -> Message:
    """As a mod does that reads the config of each message."""
    raise KeyError(str(message.content["config"]["server-round"]))


def replies_with_error(message: Message) -> Message:
    return Message(Error(code=1, reason="no model"), reply_to=message)


@pytest.mark.parametrize("fail", [raises, replies_with_error])
def test_a_mod_that_fails_on_the_query_hides_nothing_of_the_device(
    fail: Any, caplog: Any
) -> None:
    def mod(message: Message, context: Context, call_next: Any) -> Message:
        if "config" not in message.content:
            return fail(message)
        return call_next(message, context)

    app = DeviceApp(mods=[mod])
    app.train()(own_loop)
    strategy, _ = run(app, model_bits=4, devices=IN_TURN)
    wanted, _ = run(own_app([model_codec_mod], []), model_bits=4, devices=IN_TURN)
    assert moved(strategy, "model") == moved(wanted, "model")
    assert {name for name, _ in strategy.ledger.devices("train").items()} == {"0", "1"}
    assert "did not answer the query" not in caplog.text
    told = caplog.text.count("fails on the query 'query.split_device' with KeyError")
    assert told == (fail is raises)


def test_other_mods_see_whole_models() -> None:
    """`LocalDpMod` counts records and computes with the arrays, in a relay, too."""
    private = LocalDpMod(clipping_norm=1.0, sensitivity=1.0, epsilon=1e6, delta=1e-5)
    client = own_app([model_codec_mod], [private])
    strategy, _ = run(client, model_bits=8, devices=IN_TURN)
    assert all(not strategy.ledger.failures(number) for number in range(1, 5))


def state(**fields: Any) -> pb.Tensor:
    frame = {"name": "0.exp_avg_sq", "dtype": "float32", "shape": [64, 1, 3, 3]}
    return pb.Tensor(**{**frame, **fields})


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        (state(shape=[10**9], coding=pb.ARRAY_UNIFORM), "1000000000 entries"),
        (state(coding=pb.ARRAY_LOG, data=b"\0"), "ends early"),
        (state(coding=7), "has coding 7"),
        (state(coding=pb.ARRAY_UNIFORM, dtype="int64"), "coded as array-uniform/1"),
    ],
)
def test_coded_state_that_is_none_is_not_relayed(frame: pb.Tensor, why: str) -> None:
    half = [tuple(array.shape) for array in DeviceHalf().state_dict().values()]
    with pytest.raises(StateRefused, match=why):
        check_relayed([frame], half)


class Neighbours(nn.Sequential):
    """A half that knows by a table whose values it takes together."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 64))
        table = torch.arange(64 * 9).reshape(64, 9) * 7 % 64
        self.register_buffer("table", table)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)[:, self.table].sum(2)


@pytest.mark.parametrize("strategy", [SplitFedV1, SplitFedV2])
@pytest.mark.parametrize("codec", ["float32", "splitfc-rd"])
def test_whole_numbers_of_the_half_stay_though_devices_are_averaged(
    strategy: type[SplitLearning], codec: str
) -> None:
    half = seeded(Neighbours)
    split = strategy(seeded(ServerHalf), nn.CrossEntropyLoss(), ADAM, codec=codec)
    client = SplitClientApp(Neighbours, load_data, ADAM)
    result = split.start(LocalGrid(client, 7), ArrayRecord(half.state_dict()), 3)
    table = result.arrays.to_torch_state_dict()["table"]
    assert table.dtype == torch.int64
    assert torch.equal(table, half.table)
