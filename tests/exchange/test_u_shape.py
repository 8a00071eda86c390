"""U-shaped sessions: the device has the first and the last layers, and the loss."""

import copy
import gc
import threading
import weakref
from functools import partial

import pytest
import torch
from torch import nn

from flwr_splitfc import HeadAndTail, Limits, connect, cut_codec
from flwr_splitfc.codec import CutCodec, pack_labels
from flwr_splitfc.codec.quality import automatic_quality
from flwr_splitfc.exchange import (
    DeviceStates,
    GradientRefused,
    HalfTrainer,
    LimitExceeded,
    ProtocolError,
    Session,
    SharedHalf,
    SplitEndpoint,
    StepRefused,
)
from flwr_splitfc.exchange.device.stream import Stream
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.seeds import derive_seed
from flwr_splitfc.exchange.protocol.tensors import from_matrix, to_matrix
from flwr_splitfc.exchange.protocol.ticket import Ticket
from tests.cutting_proxy import CuttingProxy
from tests.exchange.raw_device import RawDevice
from tests.exchange.server_halves import ADAM, everything, half_state
from tests.halves import DeviceHalf, batches, same, seeded, weights
from tests.local_grid import ticket_message

CROSS_ENTROPY = nn.functional.cross_entropy


def middle() -> nn.Module:
    """With running statistics and dropout: what is done twice, or for nothing, shows."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.3)
    )


def normed_twice() -> nn.Module:
    """With one layer under two names, whose statistics move twice a pass."""
    norm = nn.BatchNorm1d(32)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), norm, nn.ReLU(), norm)


def tail() -> nn.Module:
    return nn.Linear(32, 4)


def make_endpoint(
    model=middle,
    codec="float32",
    output_codec="float32",
    bits=(32, 32),
    loss_fn=None,
    seed=0,
    **options,
):
    """`bits` are the budgets up and down, of both cuts."""
    half = HalfTrainer(seeded(model), loss_fn, ADAM, device="cpu", seed=seed, **options)
    return SplitEndpoint(
        SharedHalf(half),
        budgeted(codec, *bits),
        output_codec=None if loss_fn else budgeted(output_codec, *bits),
        states=DeviceStates("relay"),
        seed=seed,
    )


def budgeted(name: str | CutCodec, up: float, down: float) -> CutCodec:
    if isinstance(name, CutCodec):
        return name
    # few columns: the default would keep next to none
    more = {"reduction": 2} if name == "splitfc" else {}
    return cut_codec(name, uplink_bits=up, downlink_bits=down, **more)


@pytest.fixture
def endpoint():
    with make_endpoint() as endpoint:
        yield endpoint


def features(seed: int = 0) -> torch.Tensor:
    x, _ = batches(1, seed=seed)[0]
    return seeded(DeviceHalf)(x).detach().requires_grad_()


def train(
    endpoint: SplitEndpoint, turns: int, steps: int, device: str = "", **changes
) -> nn.Module:
    """Devices in turn train one head and tail, with the optimizer's state relayed.

    `changes` falsify fields of their tickets.
    """
    ends = HeadAndTail(seeded(DeviceHalf), seeded(tail))
    for turn in range(turns):
        optimizer = ADAM(ends.parameters())
        name = device or str(turn % 3)
        message = ticket_message(endpoint, device=name, **changes)
        with connect(message, optimizer=optimizer) as server:
            for x, y in batches(steps, seed=turn):
                optimizer.zero_grad()
                CROSS_ENTROPY(ends(x, server.forward), y).backward()
                optimizer.step()
    return ends


# -- one step


def test_output_and_gradients_are_those_of_the_joined_model(endpoint):
    reference = seeded(middle)
    x = features()
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(0, "server-half", 0))
        wanted = reference(x)
    wanted.square().sum().backward()
    with connect(ticket_message(endpoint)) as server:
        seen = x.detach().clone().requires_grad_()
        output = server.forward(seen)
        assert torch.equal(output, wanted)
        # nothing has changed yet
        assert same(weights(endpoint.halves.half.model), weights(seeded(middle)))
        output.square().sum().backward()
    assert torch.equal(seen.grad, x.grad)
    ADAM(reference.parameters()).step()
    assert same(weights(endpoint.halves.half.model), weights(reference))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"model": normed_twice},
        {"accumulate_steps": 3},
        {"max_grad_norm": 1e-3},
        {"scheduler": partial(torch.optim.lr_scheduler.StepLR, step_size=2, gamma=0.1)},
    ],
)
def test_without_last_layers_it_is_what_sharing_labels_is(options):
    """The same loss of the same output, on the device and on the server, bit for bit."""

    def on_the_device(server, features, y):
        return CROSS_ENTROPY(server.forward(features), y)

    def on_the_server(server, features, y):
        return server.loss(features, y)

    def trained(loss_fn, loss):
        with (
            make_endpoint(loss_fn=loss_fn, **options) as endpoint,
            connect(ticket_message(endpoint)) as server,
        ):
            device_half = seeded(DeviceHalf)
            for x, y in batches(7):
                loss(server, device_half(x), y).backward()
            gradients = {name: p.grad for name, p in device_half.named_parameters()}
            return everything(endpoint) | gradients

    assert same(trained(None, on_the_device), trained(CROSS_ENTROPY, on_the_server))


def test_a_forward_that_is_dropped_leaves_no_trace(endpoint):
    before = everything(endpoint)
    with connect(ticket_message(endpoint)) as server:
        for seed in range(3):
            server.forward(features(seed))
        assert same(everything(endpoint), before)
        server.forward(features()).sum().backward()
    with make_endpoint() as undisturbed, connect(ticket_message(undisturbed)) as server:
        server.forward(features()).sum().backward()
    assert same(everything(endpoint), everything(undisturbed))
    assert endpoint.ledger.of(1, "train").steps == 1


def test_when_another_session_steps_in_between_the_pass_is_made_again(endpoint):
    """On the weights as they are now, with the randomness that it had.

    Statistics move once a step.
    """
    with (
        connect(ticket_message(endpoint)) as first,
        connect(ticket_message(endpoint, device="1")) as second,
    ):
        a, b = features(0), features(1)
        output = first.forward(a)
        second.forward(b).square().sum().backward()  # not blocked by the first
        assert endpoint.halves.half.steps == 1
        reference = HalfTrainer(middle(), None, ADAM, device="cpu")
        reference.load_state_dict(copy.deepcopy(endpoint.halves.half.state_dict()))
        (3 * output).sum().backward()

    gradient = torch.full_like(output, 3.0)
    x = a.detach().clone().requires_grad_()
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(0, "server-half", 0))
        reference.model(x).backward(gradient)
    reference.optimizer.step()
    assert torch.equal(a.grad, x.grad)
    assert same(everything(endpoint), half_state(reference))
    assert endpoint.halves.half.model[2].num_batches_tracked == 2


def test_predict_gives_the_output_in_evaluation(endpoint):
    with connect(ticket_message(endpoint, "evaluate")) as server, torch.no_grad():
        output = server.predict(features())
    assert torch.equal(output, seeded(middle).eval()(features().half().float()))
    assert endpoint.ledger.of(1, "evaluate").downlink_bytes["logits"] == 16 * 32 * 4


class Narrow(nn.Linear):
    """Layers in the middle that compute in bfloat16."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.flatten(1).bfloat16())


def test_predictions_for_last_layers_are_float32_as_outputs_are():
    last = seeded(tail)
    endpoint = make_endpoint(lambda: Narrow(64, 32).bfloat16())
    with endpoint, connect(ticket_message(endpoint)) as server:
        output = server.forward(features())
        predicted = server.predict(features())
        assert last(predicted).dtype == last(output).dtype == torch.float32
        torch.testing.assert_close(predicted, output, atol=1e-2, rtol=0.0)


# -- misuse on the device


def test_misuse_is_named(endpoint):
    with connect(ticket_message(endpoint)) as server:
        with pytest.raises(RuntimeError, match="no loss_fn"):
            server.loss(features(), batches(1)[0][1])
        with pytest.raises(RuntimeError, match="autograd graph"), torch.no_grad():
            server.forward(features())
        first, second = server.forward(features()), server.forward(features(1))
        with pytest.raises(RuntimeError, match="before the next"):
            first.sum().backward()
        second.sum().backward(retain_graph=True)
        with pytest.raises(RuntimeError, match="runs once"):
            second.sum().backward()
        with pytest.raises(ValueError, match=r"(?i)nan"):
            (server.forward(features()) * torch.nan).sum().backward()
    assert endpoint.halves.half.steps == 1


def test_forward_is_refused_where_the_loss_is_the_servers():
    with (
        make_endpoint(loss_fn=CROSS_ENTROPY) as endpoint,
        connect(ticket_message(endpoint)) as server,
        pytest.raises(RuntimeError, match="loss_fn=None"),
    ):
        server.forward(features())


# -- on the wire


Exchanged = tuple[pb.DeviceFrame, pb.ServerFrame]


class Recording(Stream):
    """Keeps every frame as it is sent, with its answer."""

    def __init__(self, ticket: Ticket) -> None:
        super().__init__(ticket)
        self.frames: list[Exchanged] = []

    def send(self, frame: pb.DeviceFrame) -> None:
        super().send(frame)
        self.sent = pb.DeviceFrame.FromString(frame.SerializeToString())

    def receive(self, number: int) -> pb.ServerFrame:
        answer = super().receive(number)
        self.frames.append((self.sent, answer))
        return answer


def recorded(endpoint: SplitEndpoint, loss, steps: int = 4) -> list[Exchanged]:
    """The frames of a turn of so many steps, each of ``loss(server, ends, x, number)``."""
    ticket = endpoint.issue("train", "0", 1)
    ends = HeadAndTail(seeded(DeviceHalf), seeded(partial(nn.Linear, 32, 1)))
    stream = Recording(ticket)
    optimizer = ADAM(ends.parameters())
    with Session(ticket, stream, optimizer=optimizer) as server:
        for number, (x, _) in enumerate(batches(steps)):
            optimizer.zero_grad()
            loss(server, ends, x, number).backward()
            optimizer.step()
    return stream.frames


def numbers(seed: int) -> torch.Tensor:
    return torch.randn(16, 1, generator=torch.Generator().manual_seed(seed))


NUMBERS = [numbers(seed) for seed in range(4)]


def squared_error(output, y):
    return nn.functional.mse_loss(output[:, :1], y)


def loss_on_the_device(server, ends, x, number):
    return squared_error(ends(x, server.forward), NUMBERS[number])


def loss_on_the_server(server, ends, x, number):
    return server.loss(ends.head(x), NUMBERS[number])


def count_containing(frames: list[Exchanged], wanted: list[bytes]) -> int:
    """How many of a device's frames hold any of the wanted bytes."""
    sent = [frame.SerializeToString() for frame, _ in frames]
    return sum(any(those in frame for those in wanted) for frame in sent)


def test_no_byte_of_a_label_is_on_the_wire():
    batches_of_labels = [pack_labels(y) for y in NUMBERS]
    single_labels = [
        label.numpy().astype(dtype).tobytes()
        for label in torch.cat(NUMBERS)
        for dtype in ("<f4", "<f8")
    ]
    with make_endpoint() as endpoint:
        frames = recorded(endpoint, loss_on_the_device)
    kinds = [frame.WhichOneof("kind") for frame, _ in frames]
    assert kinds == [*(4 * ["forward", "backward"]), "close"]
    for kind in (pb.Forward, pb.Backward):
        assert "labels" not in kind.DESCRIPTOR.fields_by_name
    assert count_containing(frames, batches_of_labels) == 0
    assert count_containing(frames, single_labels) == 0
    assert endpoint.ledger.of(1, "train").uplink_bytes["labels"] == 0

    # the search finds what is there
    with make_endpoint(loss_fn=squared_error) as endpoint:
        frames = recorded(endpoint, loss_on_the_server)
    assert count_containing(frames, batches_of_labels) == 4
    assert count_containing(frames, single_labels) == 4


def test_both_cuts_meet_their_budgets_in_bytes():
    """More bits down than up: a budget binds its direction, also where the server has the features."""

    def loss(server, ends, x, number):
        return ends(x, server.forward).square().sum()

    with make_endpoint(
        codec="splitfc", output_codec="splitfc", bits=(2.5, 5)
    ) as endpoint:
        frames = recorded(endpoint, loss)
    forwards, backwards = frames[:-1:2], frames[1:-1:2]
    features_bytes = [len(frame.forward.features.data) for frame, _ in forwards]
    output_bytes = [len(answer.output.output.data) for _, answer in forwards]
    output_gradient_bytes = [
        len(frame.backward.gradient.data) for frame, _ in backwards
    ]
    gradient_bytes = [len(answer.gradients.gradient.data) for _, answer in backwards]

    up, down = (int(16 * 64 * bits / 8) for bits in (2.5, 5))
    assert max(features_bytes) <= up
    assert max(gradient_bytes) <= down
    up, down = (int(16 * 32 * bits / 8) for bits in (2.5, 5))
    assert up < min(output_bytes) <= max(output_bytes) <= down
    assert 0 < min(output_gradient_bytes) <= max(output_gradient_bytes) <= up

    traffic = endpoint.ledger.of(1, "train")
    assert traffic.downlink_bytes["output"] == sum(output_bytes)
    assert traffic.uplink_bytes["output_gradient"] == sum(output_gradient_bytes)
    assert traffic.entries == 4 * 16 * 64
    assert traffic.output_entries == 4 * 16 * 32
    assert traffic.steps == 4
    assert traffic.rows == 64
    assert 2.5 < traffic.downlink_output_bits_per_entry <= 5
    assert 0 < traffic.uplink_output_bits_per_entry <= 2.5
    assert traffic.metrics()["downlink_output_bytes"] == sum(output_bytes)
    assert traffic.server_codec_seconds > 0


@pytest.mark.parametrize(
    ("bits", "named"),
    [((32, 0.01), "downlink_bits=0.01"), ((0.01, 32), "uplink_bits=0.01")],
)
def test_a_budget_too_small_for_the_output_is_refused_by_its_name(bits, named):
    with make_endpoint(output_codec="splitfc", bits=bits) as endpoint:
        before = everything(endpoint)
        with (
            pytest.raises(LimitExceeded, match=named),
            connect(ticket_message(endpoint)) as server,
        ):
            server.forward(features())
        assert same(everything(endpoint), before)


def test_the_coding_of_the_output_repeats_with_the_seed():
    def digest(seed: int) -> str:
        with make_endpoint(output_codec="splitfc", bits=(3, 3), seed=seed) as endpoint:
            train(endpoint, 2, 3)
        return endpoint.ledger.digest()

    assert digest(1) == digest(1) != digest(2)


def test_metrics_of_a_session(endpoint):
    with connect(ticket_message(endpoint)) as server:
        for seed in range(3):
            server.forward(features(seed)).sum().backward()
        metrics = server.metrics()
    traffic = endpoint.ledger.of(1, "train")
    assert metrics["steps"] == traffic.steps == 3
    assert metrics["num-examples"] == traffic.rows == 48
    assert "train_loss" not in metrics  # nobody told the session
    assert traffic.uplink_bits_per_entry == traffic.downlink_output_bits_per_entry == 32
    assert traffic.uplink_output_bits_per_entry == traffic.downlink_bits_per_entry == 32
    assert metrics["codec_seconds"] > 0


# -- labels stay, and are counted


AUTOMATIC = cut_codec("splitfc-rd")
TWO_LABELS = [
    torch.randn(16, 2, generator=torch.Generator().manual_seed(seed))
    for seed in range(3)
]


def of_quality(entries_per_label: float) -> CutCodec:
    return cut_codec("splitfc-rd", quality=automatic_quality(entries_per_label))


def two_outputs(output, y):
    return nn.functional.mse_loss(output[:, :2], y)


def test_features_are_as_precise_as_where_the_server_has_the_labels():
    """Several labels a sample: all weights and gradients are the same, bit for bit."""

    def on_the_device(server, features, y):
        return two_outputs(server.forward(features, label_entries=y.numel()), y)

    def on_the_server(server, features, y):
        return server.loss(features, y)

    def trained(loss_fn, loss):
        with (
            make_endpoint(codec=AUTOMATIC, loss_fn=loss_fn) as endpoint,
            connect(ticket_message(endpoint)) as server,
        ):
            device_half = seeded(DeviceHalf)
            for (x, _), y in zip(batches(3), TWO_LABELS, strict=True):
                loss(server, device_half(x), y).backward()
            gradients = {name: p.grad for name, p in device_half.named_parameters()}
            return everything(endpoint) | gradients

    assert same(trained(None, on_the_device), trained(two_outputs, on_the_server))


@pytest.mark.parametrize(
    ("told", "labels"),
    [({}, 1), ({"label_entries": 16}, 1), ({"label_entries": 32}, 2)],
)
def test_what_goes_either_way_is_as_precise_as_the_labels_ask_for(told, labels):
    """Of 64 features and 32 outputs a sample; where nothing is told, it has one."""

    def digest(codec, output_codec, **told) -> str:
        with make_endpoint(codec=codec, output_codec=output_codec) as endpoint:
            with connect(ticket_message(endpoint)) as server:
                for (x, _), y in zip(batches(3), TWO_LABELS, strict=True):
                    features = seeded(DeviceHalf)(x)
                    two_outputs(server.forward(features, **told), y).backward()
            return endpoint.ledger.digest()

    wanted = digest(of_quality(64 / labels), of_quality(32 / labels))
    assert digest(AUTOMATIC, AUTOMATIC, **told) == wanted


@pytest.mark.parametrize(
    ("label_entries", "quality"), [(1, automatic_quality(32)), (2**64 - 1, 32.5)]
)
def test_no_number_of_labels_leaves_the_bounds_of_the_quality(label_entries, quality):
    frame = forward_frame(1)
    frame.forward.label_entries = label_entries

    def answered(output_codec: CutCodec, frame: pb.DeviceFrame) -> bytes:
        with make_endpoint(output_codec=output_codec) as endpoint:
            device = RawDevice(endpoint, endpoint.issue("train", "0", 1))
            output = device.ask(frame).output.output
            matrix = pb.Matrix(stype=output.stype, shape=output.shape)
            mirrored = output_codec.mirror()
            _, link = mirrored.decode_features(from_matrix(output), expect=(16, 32))
            matrix.data = mirrored.encode_gradient(ONES, link).data
            backward = pb.DeviceFrame(number=2, backward=pb.Backward(gradient=matrix))
            assert device.ask(backward).WhichOneof("kind") == "gradients"
            device.drop()
        return output.data

    wanted = answered(cut_codec("splitfc-rd", quality=quality), forward_frame(1))
    assert answered(AUTOMATIC, frame) == wanted


@pytest.mark.parametrize(
    ("label_entries", "error", "message"),
    [
        (torch.zeros(16), TypeError, "Tensor as label_entries, .*labels.numel()"),
        (2.0, TypeError, "float as label_entries"),
        (-1, ValueError, "label_entries=-1, wanted"),
        (2**64, ValueError, "label_entries=18446744073709551616, wanted"),
    ],
)
def test_a_wrong_number_of_labels_is_named(endpoint, label_entries, error, message):
    with connect(ticket_message(endpoint)) as server:
        with pytest.raises(error, match=message):
            server.forward(features(), label_entries=label_entries)
        server.forward(features(), label_entries=0).sum().backward()
    assert endpoint.halves.half.steps == 1


# -- broken connections, lost devices


@pytest.mark.parametrize(
    ("cuts", "turns"), [(30, 3), pytest.param(150, 12, marks=pytest.mark.slow)]
)
def test_cuts_between_the_two_frames_and_elsewhere_leave_no_trace(cuts, turns):
    both_coded = {"codec": "splitfc", "output_codec": "splitfc", "bits": (3, 3)}
    with make_endpoint(**both_coded) as undisturbed:
        undisturbed_ends = train(undisturbed, turns, 20)
    with make_endpoint(**both_coded) as endpoint:
        with CuttingProxy(endpoint.address, cuts, most_bytes=3000) as proxy:
            ends = train(endpoint, turns, 20, address=proxy.address)
            assert proxy.cuts_left <= 0
        traffic = endpoint.ledger.total("train")
    assert same(weights(ends), weights(undisturbed_ends))
    assert same(everything(endpoint), everything(undisturbed))
    assert endpoint.ledger.digest() == undisturbed.ledger.digest()
    assert endpoint.halves.half.steps == traffic.steps == 20 * turns
    assert cuts // 10 < traffic.reconnects <= cuts


def forward_frame(number: int, seed: int = 0) -> pb.DeviceFrame:
    array, _ = cut_codec("float32").encode_features(features(seed))
    forward = pb.Forward(features=to_matrix(array))
    return pb.DeviceFrame(number=number, forward=forward)


ONES = torch.ones(16, 32)


def backward_frame(
    number: int, gradient: torch.Tensor = ONES, stype: str = "float32/1"
) -> pb.DeviceFrame:
    data = gradient.numpy().tobytes()
    matrix = pb.Matrix(stype=stype, shape=gradient.shape, data=data)
    return pb.DeviceFrame(number=number, backward=pb.Backward(gradient=matrix))


def test_a_frame_that_comes_again_is_answered_again_and_not_applied(endpoint):
    ticket = endpoint.issue("train", "0", 1)
    first = RawDevice(endpoint, ticket)
    output = first.ask(forward_frame(1))
    first.drop()
    second = RawDevice(endpoint, ticket)
    assert second.ask(forward_frame(1, seed=7)) == output
    gradients = second.ask(backward_frame(2))
    second.drop()
    third = RawDevice(endpoint, ticket)
    assert third.ask(backward_frame(2, torch.zeros(16, 32))) == gradients
    assert endpoint.halves.half.steps == 1
    third.drop()


class Watched(nn.Module):
    """Knows which of its outputs are still in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 32)
        self.outputs: list[weakref.ref] = []

    def forward(self, x):
        out = self.layer(x.flatten(1))
        self.outputs.append(weakref.ref(out))
        return out

    def alive(self) -> int:
        gc.collect()
        return sum(out() is not None for out in self.outputs)


def test_what_waits_for_a_device_is_freed():
    with make_endpoint(Watched) as endpoint:
        model = endpoint.halves.half.model
        ticket = endpoint.issue("train", "0", 1)
        device = RawDevice(endpoint, ticket)
        for number in (1, 2, 3):
            device.ask(forward_frame(number))
        assert model.alive() == 1  # one for a session
        device.ask(backward_frame(4))
        assert model.alive() == 0
        device.ask(forward_frame(5))
        device.ask(pb.DeviceFrame(number=6, close=pb.Close()))
        assert model.alive() == 0
        device.drop()

        ticket = endpoint.issue("train", "0", 1)
        device = RawDevice(endpoint, ticket)
        device.ask(forward_frame(1))
        endpoint.revoke([ticket.token])
        device.drop()
        assert model.alive() == 0


def test_a_device_that_dies_in_between_blocks_nobody():
    with make_endpoint(Watched) as endpoint:
        endpoint.limits = Limits(reconnect_timeout_s=0.1)
        ticket = endpoint.issue("train", "dead", 1)
        dead = RawDevice(endpoint, ticket)
        dead.ask(forward_frame(1))
        dead.drop()
        train(endpoint, 1, 3, device="alive")
        assert endpoint.halves.half.steps == 3
        while not endpoint.sweep():
            threading.Event().wait(0.02)
        assert endpoint.halves.half.model.alive() == 0


# -- hostile frames


STEP = pb.DeviceFrame(number=1, step=pb.Step())
NO_FEATURES = pb.DeviceFrame(number=1, forward=pb.Forward())
FORWARD = forward_frame(1)
NO_GRADIENT = pb.DeviceFrame(number=2, backward=pb.Backward())
HUGE_MATRIX = pb.Matrix(stype="float32/1", shape=[2**31, 2**31])
HUGE_GRADIENT = pb.DeviceFrame(number=2, backward=pb.Backward(gradient=HUGE_MATRIX))


@pytest.mark.parametrize(
    ("frames", "reason", "detail"),
    [
        ([backward_frame(1)], pb.PROTOCOL, "without a Forward"),
        (
            [FORWARD, backward_frame(2), backward_frame(3)],
            pb.PROTOCOL,
            "without a Forward",
        ),
        ([STEP], pb.PROTOCOL, "send Forward"),
        ([NO_FEATURES], pb.FEATURES, ""),
        ([FORWARD, NO_GRADIENT], pb.GRADIENT, ""),
        ([FORWARD, backward_frame(2, ONES[:15])], pb.GRADIENT, "16 x 32 was wanted"),
        ([FORWARD, backward_frame(2, ONES, "pickle/1")], pb.GRADIENT, "pickle/1"),
        ([FORWARD, backward_frame(2, ONES * torch.nan)], pb.GRADIENT, ""),
        ([FORWARD, backward_frame(2, ONES * torch.inf)], pb.GRADIENT, ""),
        ([FORWARD, backward_frame(2, ONES * 1e30)], pb.STEP, "beyond 1e18"),
        ([FORWARD, HUGE_GRADIENT], pb.GRADIENT, "16 x 32 was wanted"),
    ],
)
def test_hostile_frames_change_nothing(endpoint, frames, reason, detail):
    with connect(ticket_message(endpoint, device="good")) as good:
        x = features()
        good.forward(x).sum().backward()
        pending = good.forward(x)
        device = RawDevice(endpoint, endpoint.issue("train", "bad", 1))
        *before, last = frames
        for frame in before:
            assert device.ask(frame).WhichOneof("kind") in ("output", "gradients")
        unchanged = everything(endpoint)
        refused = device.ask(last).refused
        assert refused.reason == reason, refused.detail
        assert detail in refused.detail
        assert same(everything(endpoint), unchanged)
        pending.sum().backward()  # the other session goes on
    device.drop()


def test_forward_only_where_it_is_agreed(endpoint):
    with make_endpoint(loss_fn=CROSS_ENTROPY) as sharing:
        device = RawDevice(sharing, sharing.issue("train", "0", 1))
        refused = device.ask(forward_frame(1)).refused
    assert refused.reason == pb.PROTOCOL
    assert "send Step" in refused.detail
    device = RawDevice(endpoint, endpoint.issue("evaluate", "0", 1))
    refused = device.ask(forward_frame(1)).refused
    assert refused.reason == pb.PROTOCOL
    assert "cannot train" in refused.detail


class Nonsense(nn.Module):
    """A server half whose output cannot go to a device."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.layer = nn.Linear(64, 32)

    def forward(self, x):
        out = self.layer(x.flatten(1))
        outputs = {
            "inf": out / 0,
            "flat": out.sum(1),
            "rows": out[1:],
            "pair": (out, out),
            "cut": out.detach(),
        }
        return outputs[self.kind]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("inf", "not finite"),
        ("flat", r"shape \(16,\)"),
        ("rows", "15, 32"),
        ("pair", "type tuple"),
        ("cut", "gradient"),
    ],
)
def test_an_output_that_cannot_go_to_a_device_is_named(kind, message):
    with make_endpoint(partial(Nonsense, kind)) as endpoint:
        before = everything(endpoint)
        with (
            pytest.raises(StepRefused, match=message),
            connect(ticket_message(endpoint)) as server,
        ):
            server.forward(features())
        assert same(everything(endpoint), before)


def stream_to(endpoint: SplitEndpoint) -> Stream:
    return Stream(endpoint.issue("train", "0", 1))


def test_refusals_are_raised_by_name(endpoint):
    stream = stream_to(endpoint)
    stream.ask(forward_frame(1))
    with pytest.raises(GradientRefused):
        stream.ask(backward_frame(2, ONES * torch.nan))
    with pytest.raises(ProtocolError):
        stream_to(endpoint).ask(backward_frame(2))
