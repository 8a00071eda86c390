"""Several tensors at the cut: tuples, lists and dicts of them, with masks and states."""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord
from torch import Tensor, nn

from flwr_splitfc import (
    EndpointConfig,
    HeadAndTail,
    JoinedModel,
    PayloadError,
    RoundRobin,
    SplitClientApp,
    SplitLearning,
    connect,
    cut_codec,
)
from flwr_splitfc.codec import BudgetError, CutCodec, pack_labels
from flwr_splitfc.codec.budget import budget_bytes
from flwr_splitfc.defence import FeatureDefence
from flwr_splitfc.exchange import (
    FeaturesRefused,
    HalfTrainer,
    LimitExceeded,
    Limits,
    SharedHalf,
    SplitEndpoint,
    StepRefused,
)
from flwr_splitfc.exchange.device.stream import Stream
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.parts import exact_part, pack_parts, unpack_parts
from flwr_splitfc.exchange.protocol.tensors import to_matrix
from flwr_splitfc.model.structures import Structure, float_tensors, leaves_of
from tests.cutting_proxy import CuttingProxy
from tests.exchange.server_halves import ADAM, everything, half_state
from tests.halves import batches, same, seeded, weights
from tests.local_grid import LocalGrid, ticket_message

FLOAT32 = cut_codec("float32")
CROSS_ENTROPY = nn.CrossEntropyLoss()
ROWS = 16

Arrange = Callable[[Tensor, Tensor, Tensor, Tensor], Structure]

KINDS: dict[str, Arrange] = {
    "tuple": lambda wide, thin, mask, ids: (wide, thin),
    "list": lambda wide, thin, mask, ids: [wide, thin],
    "dict": lambda wide, thin, mask, ids: {"wide": wide, "thin": thin},
    "one in a tuple": lambda wide, thin, mask, ids: (wide,),
    "mask": lambda wide, thin, mask, ids: (wide, mask),
    "ids first": lambda wide, thin, mask, ids: {"ids": ids, "wide": wide},
    "partly frozen": lambda wide, thin, mask, ids: (wide.detach(), thin),
    "nested": lambda wide, thin, mask, ids: {
        "states": (wide, [thin, None]),
        "mask": {"of": mask, "none": ()},
        "ids": ids,
    },
}


class DeviceHalf(nn.Module):
    """Gives its features as a structure, with a mask and numbers of the batch."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.wide = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.MaxPool2d(2))
        self.thin = nn.Linear(64, 24)
        self.kind = kind

    def forward(self, x: Tensor) -> Structure:
        wide = self.wide(x)
        thin = self.thin(x.flatten(1)).relu()
        # broadcast over the batch, and one for each sample
        mask = torch.arange(4)[None] > 0
        ids = x.flatten(1).argmax(1)
        return KINDS[self.kind](wide, thin, mask, ids)


class ServerHalf(nn.Module):
    """Takes all tensors of a structure, whatever it is."""

    def __init__(self, classes: int = 4, asks: type | None = None) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(64)
        self.wide = nn.Linear(64, 16)
        self.thin = nn.Linear(24, 16)
        self.ids = nn.Embedding(64, 16)
        self.last = nn.Linear(16, classes)
        self.asks = asks

    def forward(self, features: Structure) -> Tensor:
        if self.asks is not None:
            assert type(features) is self.asks
        hidden = torch.zeros(16)
        for tensor in leaves_of(features):
            hidden = hidden + self._hidden(tensor, features)
        return self.last(hidden.relu())

    def _hidden(self, tensor: Tensor, features: Structure) -> Tensor:
        if tensor.dtype == torch.bool:
            assert tensor.shape == (1, 4)
            return tensor.float().sum().expand(16)
        if tensor.dtype == torch.int64:
            return self.ids(tensor)
        if tensor.shape[1:] == (24,):
            return self.thin(tensor)
        return self.wide(self.norm(tensor.flatten(1)))


def device_half(kind: str) -> DeviceHalf:
    return seeded(partial(DeviceHalf, kind))


def make_endpoint(
    codec: CutCodec = FLOAT32,
    model: Callable[[], nn.Module] = ServerHalf,
    loss_fn: nn.Module | None = CROSS_ENTROPY,
    **options,
) -> SplitEndpoint:
    half = HalfTrainer(seeded(model), loss_fn, ADAM, device="cpu")
    output_codec = FLOAT32 if loss_fn is None else None
    return SplitEndpoint(SharedHalf(half), codec, output_codec=output_codec, **options)


def train(endpoint: SplitEndpoint, model: nn.Module, steps: int = 4, **changes) -> None:
    optimizer = ADAM(model.parameters())
    with connect(ticket_message(endpoint, **changes), optimizer=optimizer) as server:
        for loss in server.pipelined(model, batches(steps)):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def unsplit(device: nn.Module, server: nn.Module, steps: int = 4) -> None:
    """Train both halves as one model."""
    joined = JoinedModel(device, server)
    optimizers = [ADAM(half.parameters()) for half in (device, server)]
    for x, y in batches(steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
        CROSS_ENTROPY(joined(x), y).backward()
        for optimizer in optimizers:
            optimizer.step()


# -- as if never split


@pytest.mark.parametrize("kind", KINDS)
def test_halves_train_as_the_unsplit_model(kind):
    device, wanted_device = device_half(kind), device_half(kind)
    wanted_server = seeded(ServerHalf)
    unsplit(wanted_device, wanted_server)
    with make_endpoint() as endpoint:
        train(endpoint, device)
        server = weights(endpoint.halves.half.model)
    assert same(weights(device), weights(wanted_device))
    assert same(server, weights(wanted_server))


@pytest.mark.parametrize("kind", ["tuple", "partly frozen", "nested"])
def test_halves_train_as_the_unsplit_model_where_the_loss_is_the_devices(kind):
    class Middle(ServerHalf):
        def __init__(self) -> None:
            super().__init__(classes=12)

    def ends() -> HeadAndTail:
        return HeadAndTail(device_half(kind), seeded(partial(nn.Linear, 12, 4)))

    wanted_ends, wanted_middle = ends(), seeded(Middle)
    unsplit(wanted_ends, wanted_middle)
    trained = ends()
    optimizer = ADAM(trained.parameters())
    with make_endpoint(model=Middle, loss_fn=None) as endpoint:
        with connect(ticket_message(endpoint)) as server:
            for x, y in batches(4):
                optimizer.zero_grad()
                CROSS_ENTROPY(trained(x, server.forward), y).backward()
                optimizer.step()
        middle = weights(endpoint.halves.half.model)
    assert same(weights(trained), weights(wanted_ends))
    assert same(middle, weights(wanted_middle))


def test_steps_under_way_at_once():
    with make_endpoint(pipeline_depth=3) as endpoint:
        train(endpoint, device_half("nested"), steps=8)
        assert endpoint.halves.half.steps == 8
        assert endpoint.ledger.of(1, "train").downlink_bytes["gradient"] > 0


@pytest.mark.parametrize(
    ("features", "kind"),
    [
        (lambda h, t: OrderedDict(h=h, t=t), dict),
        (lambda h, t: (h, t), tuple),
        (lambda h, t: [h, t], list),
    ],
)
def test_the_server_half_gets_the_same_structure(features, kind):
    with make_endpoint(model=partial(ServerHalf, asks=kind)) as endpoint:
        hidden = torch.rand(ROWS, 4, 4, 4, requires_grad=True)
        thin = torch.rand(ROWS, 24, requires_grad=True)
        _, y = batches(1)[0]
        with connect(ticket_message(endpoint)) as server:
            server.loss(features(hidden, thin), y).backward()
            assert server.predict(features(hidden, thin)).shape == (ROWS, 4)
        assert hidden.grad.any()
        assert thin.grad.any()


class Several(nn.Module):
    """Gives its output as a structure, too."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = ServerHalf()

    def forward(self, features: Structure) -> dict[str, Tensor]:
        logits = self.inner(features)
        return {"logits": logits, "best": logits.argmax(1)}


def test_predictions_may_be_several_tensors():
    x, _ = batches(1)[0]
    device, server_half = device_half("nested"), seeded(Several).eval()
    with make_endpoint(cut_codec("float32", evaluation="float32"), Several) as endpoint:
        with connect(ticket_message(endpoint, "evaluate")) as server:
            predicted = server.predict(device(x))
        counted = endpoint.ledger.of(1, "evaluate").downlink_bytes["logits"]
    wanted = server_half(device(x))
    assert list(predicted) == ["logits", "best"]
    assert torch.equal(predicted["logits"], wanted["logits"])
    assert torch.equal(predicted["best"], wanted["best"])
    assert counted == sum(len(pack_labels(tensor)) for tensor in predicted.values())


def test_each_tensor_of_a_prediction_is_as_precise_as_it_needs():
    hidden, thin = torch.rand(ROWS, 4, 4, 4), 1e5 * torch.randn(ROWS, 24)
    with make_endpoint() as endpoint:
        with connect(ticket_message(endpoint, "evaluate")) as server:
            predicted = server.predict((hidden, thin))
        counted = endpoint.ledger.of(1, "evaluate").uplink_bytes["features"]
    wanted = seeded(ServerHalf).eval()((hidden.half().float(), thin))
    assert torch.equal(predicted, wanted)
    assert counted == 2 * hidden.numel() + 4 * thin.numel()


def test_an_output_of_several_tensors_cannot_go_to_last_layers():
    with make_endpoint(model=Several, loss_fn=None) as endpoint:
        before = everything(endpoint)
        x, _ = batches(1)[0]
        with (
            pytest.raises(StepRefused, match="output has type dict, wanted"),
            connect(ticket_message(endpoint)) as server,
        ):
            server.forward(device_half("tuple")(x))
        assert same(everything(endpoint), before)


# -- whole numbers that are floats


class Watching(nn.Module):
    """Trains on `hidden`, and remembers the rest of what it got."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(64, 4)
        self.got: list[dict[str, Tensor]] = []

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        hidden = features.pop("hidden")
        self.got.append({key: value.detach() for key, value in features.items()})
        return self.last(hidden.flatten(1))


class Arrived(NamedTuple):
    """What arrives of tensors beside features, in a step and in a prediction."""

    got: list[dict[str, Tensor]]
    entries: int  # that were coded in the step
    uplink_bytes: int
    downlink_bytes: int


def what_arrives(codec: CutCodec, data: dict[str, Tensor], **options) -> Arrived:
    """Send tensors and then features, so that the gradient is not of the first one."""
    hidden = torch.rand(ROWS, 64, requires_grad=True)
    features = {**data, "hidden": hidden}
    _, y = batches(1)[0]
    with make_endpoint(codec, Watching, **options) as endpoint:
        with connect(ticket_message(endpoint)) as server:
            if server.ticket.output_codec:
                server.forward(features).sum().backward()
            elif server.ticket.decoupled:
                server.send(features, y)
            else:
                server.loss(features, y).backward()
            assert server.ticket.decoupled or hidden.grad.any()
            server.predict(features)
        traffic = endpoint.ledger.of(1, "train")
        return Arrived(
            endpoint.halves.half.model.got,
            traffic.entries,
            traffic.uplink_bytes["features"],
            traffic.downlink_bytes["gradient"],
        )


WHOLE = {
    "mask": (torch.arange(24) < torch.arange(ROWS)[:, None]).float(),
    "ids": torch.arange(ROWS)[:, None] * 1e6,
    "largest": torch.tensor([[2.0**24 - 1, 1 - 2.0**24]] * ROWS),
    "half": torch.arange(ROWS)[:, None].half(),
    "double": torch.arange(ROWS)[:, None].double(),
    "zeros": torch.zeros(ROWS, 3),
}


@pytest.mark.parametrize(
    "options",
    [{}, {"loss_fn": None}, {"decoupled": True}],
    ids=["loss", "u-shape", "decoupled"],
)
@pytest.mark.parametrize("name", ["splitfc", "splitfc-rd", "float16"])
def test_whole_numbers_as_floats_arrive_exactly(name, options):
    codec = cut_codec(name, uplink_bits=4, downlink_bits=4)
    arrived = what_arrives(codec, WHOLE, **options)
    wanted = {key: tensor.float() for key, tensor in WHOLE.items()}
    assert [same(got, wanted) for got in arrived.got] == [True, True]
    assert {tensor.dtype for tensor in arrived.got[0].values()} == {torch.float32}


def test_they_cost_what_integers_do():
    as_integers = {key: tensor.to(torch.int32) for key, tensor in WHOLE.items()}
    arrived, wanted = (what_arrives(FLOAT32, data) for data in (WHOLE, as_integers))
    assert arrived[1:] == wanted[1:]


@pytest.mark.parametrize(
    "features",
    [
        torch.ones(ROWS, 2, requires_grad=True),
        torch.full((ROWS, 2), 0.5),
        torch.full((ROWS, 2), 2.0**24),
    ],
    ids=["with a graph", "fractions", "too large"],
)
def test_other_floats_are_features(features):
    assert what_arrives(FLOAT32, {"more": features}).entries == ROWS * (64 + 2)
    assert what_arrives(FLOAT32, {"data": WHOLE["mask"]}).entries == ROWS * 64


def test_the_largest_tensor_is_the_features_where_there_are_no_others():
    ids = torch.full((ROWS, 1), 2049.0)
    _, y = batches(1)[0]
    with make_endpoint(cut_codec("float16"), Watching) as endpoint:
        with connect(ticket_message(endpoint)) as server:
            server.loss({"ids": ids, "hidden": torch.ones(ROWS, 64)}, y).backward()
        assert endpoint.ledger.of(1, "train").entries == ROWS * 64
        assert same(endpoint.halves.half.model.got[0], {"ids": ids})


def test_of_whole_numbers_alone_the_smallest_are_the_features():
    """As where spikes predict, which have a graph in training alone."""
    spikes = (torch.rand(ROWS, 64) > 0.5).float()
    ids = torch.randint(2049, 50_000, (ROWS, 80)).float()
    features = {"ids": ids, "none": torch.zeros(ROWS, 0), "hidden": spikes}
    _, y = batches(1)[0]
    codec = cut_codec("float16", evaluation="codec")
    with make_endpoint(codec, Watching) as endpoint:
        with connect(ticket_message(endpoint)) as server:
            server.loss(features, y).backward()
            server.predict(features)
        assert endpoint.ledger.of(1, "train").entries == ROWS * 64
        got = endpoint.halves.half.model.got
    assert [torch.equal(each["ids"], ids) for each in got] == [True, True]


def test_with_noise_no_floats_go_as_they_were():
    defence = FeatureDefence(clip_norm=10.0, noise=0.1)
    _, y = batches(1)[0]
    hidden = torch.rand(ROWS, 64, requires_grad=True)
    with make_endpoint(FLOAT32, Watching) as endpoint:
        with connect(ticket_message(endpoint)) as server:
            noisy = defence(y, {"data": WHOLE["mask"], "hidden": hidden})
            server.loss(noisy, y).backward()
        (got,) = endpoint.halves.half.model.got
    assert torch.equal(got["data"], noisy["data"])
    assert (got["data"] != WHOLE["mask"]).all()


# -- whole runs


class OfBatch(nn.Module):
    """A device half that takes its batch as a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = device_half("nested")

    def forward(self, batch: dict[str, Tensor]) -> Structure:
        return self.inner(batch["pictures"])


@pytest.mark.parametrize("depth", [1, 2])
def test_inputs_may_be_a_structure(depth):
    data = [({"pictures": x}, y) for x, y in batches(3)]
    app = SplitClientApp(
        OfBatch, lambda context: (data, data), ADAM, loss_fn=CROSS_ENTROPY
    )
    strategy = SplitLearning(
        seeded(ServerHalf),
        CROSS_ENTROPY,
        ADAM,
        devices=RoundRobin(min_available_nodes=1),
        pipeline_depth=depth,
    )
    arrays = ArrayRecord(OfBatch().state_dict())
    strategy.start(LocalGrid(app, 1, workers=0), arrays, 2)
    assert [row["failures"] for row in strategy.progress.rows] == [{}, {}]
    assert strategy.ledger.total("evaluate").rows == 2 * 3 * ROWS


def run(transport: str, codec: CutCodec) -> SplitLearning:
    app = SplitClientApp(
        partial(DeviceHalf, "nested"),
        lambda context: (batches(3, seed=context.node_config["partition-id"]),) * 2,
        ADAM,
        loss_fn=CROSS_ENTROPY,
    )
    strategy = SplitLearning(
        seeded(ServerHalf),
        CROSS_ENTROPY,
        ADAM,
        codec=codec,
        devices=RoundRobin(min_available_nodes=2),
        endpoint=EndpointConfig(transport=transport),
    )
    arrays = ArrayRecord(device_half("nested").state_dict())
    config = ConfigRecord({"steps-per-turn": 3})
    grid = LocalGrid(app, 2, workers=0)
    result = strategy.start(grid, arrays, 3, train_config=config)
    assert strategy.joined_model(device_half("nested"), result.arrays)(
        batches(1)[0][0]
    ).shape == (ROWS, 4)
    return strategy


@pytest.mark.parametrize("name", ["float32", "splitfc", "splitfc-rd"])
def test_both_transports_give_the_same_run(name):
    codec = cut_codec(name, uplink_bits=4, downlink_bits=4)
    by_stream, by_message = run("stream", codec), run("messages", codec)
    assert by_stream.ledger.total("train").steps == 9
    assert by_stream.ledger.digest() == by_message.ledger.digest()
    assert same(weights(by_stream.server_model), weights(by_message.server_model))


def test_cut_connections_leave_no_trace():
    codec = cut_codec("splitfc", uplink_bits=4, downlink_bits=4)
    with make_endpoint(codec) as endpoint:
        undisturbed = device_half("nested")
        train(endpoint, undisturbed, steps=30)
        digest = endpoint.ledger.digest()
        server = half_state(endpoint.halves.half)
    with (
        make_endpoint(codec) as endpoint,
        CuttingProxy(endpoint.address, 20, most_bytes=3000) as proxy,
    ):
        disturbed = device_half("nested")
        train(endpoint, disturbed, steps=30, address=proxy.address)
        assert proxy.cuts_left <= 0
        assert endpoint.ledger.digest() == digest
        assert same(half_state(endpoint.halves.half), server)
    assert same(weights(disturbed), weights(undisturbed))


# -- what is counted


@pytest.mark.parametrize(
    "name", ["splitfc", "quant-only", "splitfc-rd", "int8", "top-s", "fedlite"]
)
def test_each_tensor_keeps_the_budget_to_the_byte(name):
    up, down = 9.0, 10.0
    codec = cut_codec(name, uplink_bits=up, downlink_bits=down)
    with make_endpoint(codec) as endpoint:
        train(endpoint, device_half("tuple"), steps=1)
        traffic = endpoint.ledger.of(1, "train")
    widths = [64, 24]
    assert traffic.entries == ROWS * sum(widths)
    most_up = sum(budget_bytes(ROWS, width, up) for width in widths)
    most_down = sum(budget_bytes(ROWS, width, down) for width in widths)
    assert 0 < traffic.uplink_bytes["features"] <= most_up
    assert 0 < traffic.downlink_bytes["gradient"] <= most_down
    assert traffic.feature_error_steps == traffic.gradient_error_steps == 1


def test_masks_count_as_features_bytes_and_not_as_entries():
    x, _ = batches(1)[0]
    tensors = leaves_of(device_half("nested")(x))
    _, _, mask, ids = tensors
    with make_endpoint() as endpoint:
        train(endpoint, device_half("nested"), steps=1)
        traffic = endpoint.ledger.of(1, "train")
    floats = 4 * ROWS * (64 + 24)
    exact = len(pack_labels(mask)) + len(pack_labels(ids))
    assert traffic.uplink_bytes["features"] == floats + exact
    assert traffic.downlink_bytes["gradient"] == floats
    assert traffic.entries == ROWS * (64 + 24)


def test_tensors_without_a_graph_bring_no_gradient_down():
    x, y = batches(1)[0]
    frozen = device_half("tuple").requires_grad_(False)
    with make_endpoint() as endpoint:
        with connect(ticket_message(endpoint)) as server:
            server.loss(frozen(x), y).backward()
        assert endpoint.ledger.of(1, "train").downlink_bytes["gradient"] == 0
        train(endpoint, device_half("partly frozen"), steps=1)
        traffic = endpoint.ledger.of(1, "train")
    assert traffic.downlink_bytes["gradient"] == 4 * ROWS * 24
    assert traffic.uplink_bytes["features"] == 2 * 4 * ROWS * (64 + 24)


def test_a_tensor_that_is_too_small_for_the_budget_is_named():
    x, y = batches(1)[0]
    wide = device_half("tuple")(x)[0]
    with (
        make_endpoint(cut_codec("splitfc", uplink_bits=1.0)) as endpoint,
        connect(ticket_message(endpoint)) as server,
        pytest.raises(BudgetError, match="too small for 16 x 1"),
    ):
        server.loss((wide, wide.flatten(1)[:, :1]), y)


def test_rows_are_left_out_of_no_tensor():
    codec = cut_codec("splitfc-rd", uplink_bits=0.48, downlink_bits=4.0)
    x, y = batches(1)[0]
    wide, _ = device_half("tuple")(x)
    with make_endpoint(codec) as endpoint, connect(ticket_message(endpoint)) as server:
        leaf = wide.detach().requires_grad_()
        server.loss((leaf,), y).backward()
        assert leaf.grad.flatten(1).any(1).all()


# -- what is hostile


def coded(features: Tensor, codec: CutCodec = FLOAT32, **more) -> pb.Part:
    array, _ = codec.encode_features(features)
    return pb.Part(coded=to_matrix(array), **more)


def whole(numbers: Tensor) -> pb.Part:
    return pb.Part(exact=pack_labels(numbers), as_float=True)


WIDE = torch.rand(ROWS, 4, 4, 4)
PART = coded(WIDE)
ONES = torch.ones(ROWS, 2, dtype=torch.int32)
NOT_A_NUMBER = pb.Part(coded=pb.Matrix(stype="float32/1", shape=[ROWS, 64]))
NOT_A_NUMBER.coded.data = torch.full((ROWS, 64), torch.nan).numpy().tobytes()
HUGE = pb.Part(exact=pack_labels(torch.zeros(2**24, dtype=torch.int64)))

HOSTILE = {
    "too many": ([pb.Part(tuple=128), *[PART] * 128], "129 parts, at most 128"),
    "too deep": ([*[pb.Part(list=1)] * 9, PART], "more than 8 deep"),
    "far too deep": ([*[pb.Part(list=1)] * 120, PART], "more than 8 deep"),
    "cut short": ([pb.Part(tuple=2**32 - 1), PART], "ends before its last part"),
    "nothing at all": ([pb.Part(dict=0)], "no tensor of the features is floating"),
    "none": ([pb.Part()], "no tensor of the features is floating"),
    "more than one": ([PART, PART], "1 parts follow"),
    "a key twice": ([pb.Part(dict=2), PART, PART], "a dict of 2 has a key twice"),
    "exact floats": ([pb.Part(exact=pack_labels(WIDE))], "wanted a coded one"),
    "floats as floats": ([whole(WIDE)], "are torch.float32, wanted torch.int32"),
    "int64 as floats": ([whole(torch.arange(ROWS))], "are torch.int64, wanted"),
    "floats alone": ([whole(torch.arange(ROWS).int())], "no tensor of the features"),
    "floats of no rows": (
        [pb.Part(tuple=2), PART, whole(ONES[0, 0])],
        "shape \\(\\), ",
    ),
    "floats of other rows": (
        [pb.Part(tuple=2), PART, whole(ONES[:9])],
        "wanted 16 row",
    ),
    "too large to be floats": ([pb.Part(tuple=2), PART, whole(2**24 * ONES)], "2\\^24"),
    "the smallest int32": ([pb.Part(tuple=2), PART, whole(-(2**31) * ONES)], "2\\^24"),
    "no mask": ([pb.Part(tuple=2), PART, pb.Part(exact=b"no")], "unknown label type"),
    "another stype": ([coded(WIDE, cut_codec("float16"))], "agreed is 'float32/1'"),
    "NaN": ([NOT_A_NUMBER], "not finite|NaN|beyond"),
    "other rows": ([pb.Part(list=2), PART, coded(WIDE[:8])], "16 rows, another 8"),
    "no rows": ([pb.Part(coded=pb.Matrix(stype="float32/1"))], "wanted \\(B, ...\\)"),
    "too large together": ([pb.Part(tuple=4), PART, HUGE, HUGE, HUGE], "are over"),
    "another structure": ([pb.Part(tuple=1), coded(WIDE[:, :3])], "does not take"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_structures_are_refused(case):
    parts, message = HOSTILE[case]
    _, y = batches(1)[0]
    config = EndpointConfig(limits=Limits(max_matrix_bytes=2**28))
    for make in (
        lambda: pb.DeviceFrame(step=pb.Step(parts=parts, labels=pack_labels(y))),
        lambda: pb.DeviceFrame(predict=pb.Predict(parts=parts)),
    ):
        codec = cut_codec("float32", evaluation="codec")
        with make_endpoint(codec, config=config) as endpoint:
            before = everything(endpoint)
            stream = Stream(endpoint.issue("train", "0", 1))
            with pytest.raises(FeaturesRefused, match=message):
                stream.ask(make())
            assert same(everything(endpoint), before)
            train(endpoint, device_half("nested"), steps=1)


def test_too_many_rows_are_refused():
    parts = [pb.Part(tuple=1), coded(torch.zeros(5000, 4))]
    with make_endpoint() as endpoint:
        stream = Stream(endpoint.issue("train", "0", 1))
        with pytest.raises(LimitExceeded, match="5000 samples, at most 4096"):
            stream.ask(pb.DeviceFrame(step=pb.Step(parts=parts)))


def test_a_sample_of_the_rows_is_refused():
    codec = cut_codec("splitfc-rd", uplink_bits=0.48, downlink_bits=4.0)
    parts = [pb.Part(tuple=1), coded(WIDE, codec)]
    with make_endpoint(codec) as endpoint:
        stream = Stream(endpoint.issue("train", "0", 1))
        with pytest.raises(FeaturesRefused, match="of 16 rows came; of several"):
            stream.ask(pb.DeviceFrame(step=pb.Step(parts=parts)))


def test_work_waits_for_all_tensors_of_a_structure():
    """Two sessions whose features fit into the budget one by one alone."""
    model = device_half("nested")
    x, _ = batches(1)[0]
    size_bytes = sum(tensor.nbytes for tensor in float_tensors(model(x)))
    config = EndpointConfig(limits=Limits(max_work_bytes=size_bytes))
    with make_endpoint(config=config) as endpoint:
        train(endpoint, model, steps=3)
        assert endpoint.halves.half.steps == 3


def test_answers_with_other_gradients_are_refused(monkeypatch):
    """The server answers with one gradient where the device wants two."""
    x, y = batches(1)[0]
    with make_endpoint() as endpoint:
        message = ticket_message(endpoint)
        turn = endpoint._registry.sessions()[0].turn
        encode = turn._encode_gradients
        monkeypatch.setattr(turn, "_encode_gradients", lambda *args: encode(*args)[:1])
        with (
            pytest.raises(PayloadError, match="1 gradients came, wanted 2"),
            connect(message) as server,
        ):
            server.loss(device_half("tuple")(x), y)


@pytest.mark.parametrize("kind", KINDS)
def test_parts_come_back_as_they_were(kind):
    x, _ = batches(1)[0]
    features = device_half(kind)(x)
    count = len(leaves_of(features))
    numbers = iter(range(count))
    parts = pack_parts(features, lambda _: exact_part(torch.tensor(next(numbers))))
    unpacked = unpack_parts(parts, lambda part: part.exact)
    packed = [pack_labels(torch.tensor(number)) for number in range(count)]
    assert leaves_of(unpacked) == packed
    assert str(unpack_parts(parts, lambda _: 0)) == str(KINDS[kind](*[_Zero()] * 4))


class _Zero:
    def __repr__(self) -> str:
        return "0"

    def detach(self) -> "_Zero":
        return self
