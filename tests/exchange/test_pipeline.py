"""Several mini-batches of a device under way at once."""

import json
import random
from collections import deque
from copy import deepcopy
from functools import partial

import pytest
import torch
from flwr.app import Context, RecordDict
from torch import Tensor, nn

from flwr_splitfc import (
    EndpointConfig,
    SplitClientApp,
    SplitFC,
    SplitServerApp,
    connect,
    cut_codec,
)
from flwr_splitfc.exchange import SplitEndpoint, TicketError
from flwr_splitfc.exchange.device.session import Session
from flwr_splitfc.exchange.device.stream import Stream
from tests.cutting_proxy import CuttingProxy
from tests.exchange.raw_device import RawDevice
from tests.exchange.server_halves import ADAM, shared_half
from tests.exchange.step_frames import label_bytes, step_frame
from tests.halves import DeviceHalf, ServerHalf, batches, same, seeded, weights
from tests.local_grid import LocalGrid, ticket_message

STEPS = 12
SERVER_ADAM = partial(torch.optim.Adam, lr=1e-3)


FROZEN = partial(torch.optim.SGD, lr=0.0)
"""No step changes a half: every mini-batch has one loss, and one gradient."""


def make_endpoint(
    depth: int, codec: str = "float32", optimizer=SERVER_ADAM
) -> SplitEndpoint:
    return SplitEndpoint(
        shared_half(optimizer=optimizer), cut_codec(codec), pipeline_depth=depth
    )


def trained(depth: int, make=DeviceHalf) -> tuple[dict, dict, list[float]]:
    """Both halves' weights and the losses of a turn."""
    device_half = seeded(make)
    optimizer = ADAM(device_half.parameters())
    losses = []
    with make_endpoint(depth) as endpoint:
        with connect(ticket_message(endpoint), optimizer=optimizer) as server:
            for loss in server.pipelined(device_half, batches(STEPS)):
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            metrics = server.metrics()
        assert metrics["steps"] == endpoint.ledger.of(1, "train").steps == STEPS
        return weights(device_half), weights(endpoint.halves.half.model), losses


def reference(depth: int, make=DeviceHalf) -> tuple[dict, dict, list[float]]:
    """The same in one process: gradients come `depth` - 1 steps late."""
    device_half, server_half = seeded(make), seeded(ServerHalf)
    device_optimizer = ADAM(device_half.parameters())
    server_optimizer = SERVER_ADAM(server_half.parameters())
    under_way: deque[tuple[nn.Module, Tensor, Tensor]] = deque()
    losses = []

    def apply() -> None:
        kept, features, gradient = under_way.popleft()
        kept.zero_grad()
        features.backward(gradient)
        for weight, copy in zip(
            device_half.parameters(), kept.parameters(), strict=True
        ):
            weight.grad = copy.grad
        device_optimizer.step()

    for x, y in batches(STEPS):
        kept = deepcopy(device_half)
        features = kept(x)
        for buffer, copy in zip(device_half.buffers(), kept.buffers(), strict=True):
            buffer.copy_(copy)
        cut = features.detach().requires_grad_()
        server_optimizer.zero_grad()
        loss = nn.functional.cross_entropy(server_half(cut), y)
        loss.backward()
        server_optimizer.step()
        losses.append(loss.item())
        under_way.append((kept, features, cut.grad))
        if len(under_way) == depth:
            apply()
    while under_way:
        apply()
    return weights(device_half), weights(server_half), losses


class WithNorm(DeviceHalf):
    """A device half with running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))


class Shared(DeviceHalf):
    """A device half with a layer under two names, and its weight in another layer."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(4, 4)
        self.decoder = self.encoder
        self.last = nn.Linear(4, 4)
        self.last.weight = self.encoder.weight

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.encoder(super().forward(x)).tanh()
        return self.last(self.decoder(hidden).tanh())


@pytest.mark.parametrize("make", [DeviceHalf, WithNorm, Shared])
@pytest.mark.parametrize("depth", [1, 2, 4, STEPS + 3])
def test_a_gradient_is_applied_so_many_steps_late_to_the_weights_it_is_of(depth, make):
    device, server, losses = trained(depth, make)
    device_wanted, server_wanted, losses_wanted = reference(depth, make)
    assert same(device, device_wanted)
    assert same(server, server_wanted)
    assert losses == losses_wanted


@pytest.mark.parametrize("make", [DeviceHalf, Shared])
def test_a_forward_pass_that_fails_leaves_the_device_half_its_weights(make):
    device_half = seeded(make)
    own = dict(device_half.named_parameters(remove_duplicate=False))
    too_many_channels = (torch.rand(16, 3, 8, 8), torch.zeros(16, dtype=torch.long))
    with (
        make_endpoint(2) as endpoint,
        pytest.raises(RuntimeError, match="channels"),
        connect(ticket_message(endpoint)) as server,
    ):
        next(server.pipelined(device_half, [too_many_channels]))
    left = dict(device_half.named_parameters(remove_duplicate=False))
    assert left.keys() == own.keys()
    assert all(left[name] is weight for name, weight in own.items())


def test_a_depth_of_one_is_the_loop_with_a_loss():
    device_half = seeded(DeviceHalf)
    optimizer = ADAM(device_half.parameters())
    with make_endpoint(4) as endpoint:
        with connect(ticket_message(endpoint), optimizer=optimizer) as server:
            for x, y in batches(STEPS):
                optimizer.zero_grad()
                server.loss(device_half(x), y).backward()
                optimizer.step()
        looped = weights(device_half), weights(endpoint.halves.half.model)
    device, server, _ = trained(1)
    assert same(looped[0], device)
    assert same(looped[1], server)


def test_a_loop_that_is_left_early_takes_the_answers_that_are_under_way():
    device_half = seeded(DeviceHalf)
    with make_endpoint(4) as endpoint:
        with connect(ticket_message(endpoint)) as server:
            for loss in server.pipelined(device_half, batches(STEPS)):
                loss.backward()
                break
            x, y = batches(1)[0]
            server.loss(device_half(x), y).backward()
        assert endpoint.halves.half.steps == 5


@pytest.mark.parametrize(("depth", "predictions"), [(1, 0), (4, 0), (4, STEPS)])
def test_the_ledger_knows_the_bytes_that_went_up_and_came_down_at_once(
    depth, predictions
):
    device_half = seeded(DeviceHalf)
    with make_endpoint(depth) as endpoint:
        with connect(ticket_message(endpoint)) as server:
            for loss in server.pipelined(device_half, batches(STEPS)):
                loss.backward()
            for x, _ in batches(predictions):
                server.predict(device_half(x))
        traffic = endpoint.ledger.of(1, "train")
        link = endpoint.ledger.links(1, "train")["0"]
    # and one of Close
    assert link[2] == STEPS // depth + predictions + 1
    if depth == 1:
        assert len(link) == 3
    else:
        sent = traffic.uplink_bytes["features"] + traffic.uplink_bytes["labels"]
        assert link[3:] == [sent, traffic.downlink_bytes["gradient"]]
        assert sent > STEPS * 16 * 64 * 4


def asked_at_once(server, device_half, seed: int):
    """Go over two pipelines at once, with other questions in between.

    Yields a loss and its batch, or a prediction and its inputs.
    """
    draw = random.Random(seed)
    depths = range(1, server.ticket.pipeline_depth + 1)
    first, second, others = (batches(STEPS, seed=3 * seed + i) for i in range(3))
    pipelines = [
        server.pipelined(device_half, first, draw.choice(depths)),
        server.pipelined(device_half, second, draw.choice(depths)),
    ]
    for place, losses in enumerate(zip(*pipelines, strict=True)):
        yield losses[0], first[place]
        x, y = others[place]
        question = draw.choice(["loss", "prediction", "none"])
        if question == "loss":
            yield server.loss(device_half(x), y), (x, y)
        if question == "prediction":
            yield server.predict(device_half(x)), x
        yield losses[1], second[place]


@pytest.mark.parametrize("seed", range(5))
def test_questions_in_the_loop_get_their_own_answers(seed):
    device_half, server_half = seeded(DeviceHalf), seeded(ServerHalf)
    with (
        make_endpoint(2 + seed % 3, optimizer=FROZEN) as endpoint,
        CuttingProxy(endpoint.address, 6, most_bytes=30_000, seed=seed) as proxy,
        connect(ticket_message(endpoint, address=proxy.address)) as server,
    ):
        for answer, asked in asked_at_once(server, device_half, seed):
            if isinstance(asked, Tensor):
                predicted = server_half(device_half(asked))
                # features to predict from are sent as float16
                assert torch.allclose(answer, predicted, rtol=0, atol=1e-3)
                continue
            came = gradients(device_half, answer)
            x, y = asked
            loss = nn.functional.cross_entropy(server_half(device_half(x)), y)
            assert answer.item() == loss.item()
            assert same(came, gradients(device_half, loss))


def gradients(device_half: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    names = [name for name, _ in device_half.named_parameters()]
    of_each = torch.autograd.grad(loss, list(device_half.parameters()))
    return dict(zip(names, of_each, strict=True))


@pytest.mark.parametrize("codec", ["float32", "splitfc-rd"])
@pytest.mark.parametrize("seed", range(2))
def test_cuts_leave_no_trace_where_questions_cross(codec, seed):
    def turn(endpoint: SplitEndpoint, **changes) -> tuple[dict, dict, list[float]]:
        device_half = seeded(DeviceHalf)
        optimizer = ADAM(device_half.parameters())
        answers = []
        with connect(ticket_message(endpoint, **changes)) as server:
            for answer, asked in asked_at_once(server, device_half, seed):
                answers.append(answer.sum().item())
                if isinstance(asked, Tensor):
                    continue
                optimizer.zero_grad()
                answer.backward()
                optimizer.step()
        return weights(device_half), weights(endpoint.halves.half.model), answers

    with make_endpoint(3, codec) as endpoint:
        device, server, answers = turn(endpoint)
        digest = endpoint.ledger.digest()
    with (
        make_endpoint(3, codec) as endpoint,
        CuttingProxy(endpoint.address, 10, most_bytes=20_000, seed=seed) as proxy,
    ):
        disturbed = turn(endpoint, address=proxy.address)
        assert endpoint.ledger.digest() == digest
    assert same(disturbed[0], device)
    assert same(disturbed[1], server)
    assert disturbed[2] == answers


@pytest.mark.parametrize("closes_by_reply", [False, True])
def test_a_loop_that_is_never_ended_does_not_keep_a_session_open(closes_by_reply):
    with make_endpoint(4) as endpoint:
        ticket = endpoint.issue("train", "0", 1)
        stream = Stream(ticket, closes_by_reply=closes_by_reply)
        with Session(ticket, stream) as server:
            losses = server.pipelined(seeded(DeviceHalf), batches(STEPS))
            next(losses).backward()
        assert endpoint.halves.half.steps == 4
        losses.close()


def test_an_error_in_the_loop_ends_the_session_as_without_a_pipeline():
    with make_endpoint(4) as endpoint:
        message = ticket_message(endpoint)
        with pytest.raises(ZeroDivisionError), connect(message) as server:
            for _ in server.pipelined(seeded(DeviceHalf), batches(STEPS)):
                raise ZeroDivisionError
        assert endpoint.halves.half.steps == 4
        with connect(ticket_message(endpoint, device="1")) as server:
            x, y = batches(1)[0]
            server.loss(seeded(DeviceHalf)(x), y).backward()


def test_frozen_weights_are_not_copied_and_may_be_shared():
    device_half = seeded(DeviceHalf)
    first = next(device_half.parameters())
    first.requires_grad_(False)
    before = first.clone()
    optimizer = ADAM([w for w in device_half.parameters() if w.requires_grad])
    with make_endpoint(2) as endpoint, connect(ticket_message(endpoint)) as server:
        for loss in server.pipelined(device_half, batches(4)):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert torch.equal(first, before)


def test_only_the_answers_that_a_device_may_wait_for_are_kept():
    frames = []
    for number in range(1, 6):
        frame = step_frame(torch.rand(8, 4, 4, 4), label_bytes(8))
        frame.number = number
        frames.append(frame)
    with make_endpoint(3) as endpoint:
        ticket = endpoint.issue("train", "0", 1)
        device = RawDevice(endpoint, ticket)
        answers = [device.ask(frame) for frame in frames]
        device.drop()
        again = RawDevice(endpoint, ticket)
        assert [again.ask(frame) for frame in frames[2:]] == answers[2:]
        # the stream ends
        again.send(frames[1])
        assert list(again._replies) == []
        assert endpoint.halves.half.steps == 5
        again.drop()


def test_a_depth_that_was_not_agreed_is_refused():
    with make_endpoint(2) as endpoint, connect(ticket_message(endpoint)) as server:
        for depth in (0, 3):
            with pytest.raises(ValueError, match=f"depth is {depth}, wanted 1 to 2"):
                server.pipelined(seeded(DeviceHalf), batches(1), depth)


def test_a_ticket_for_more_than_a_device_keeps_is_refused():
    with make_endpoint(2) as endpoint:
        with pytest.raises(TicketError, match="is 1025, wanted 1024 at most"):
            connect(ticket_message(endpoint, pipeline_depth=1025))
        message = ticket_message(endpoint, pipeline_depth=1024)
        with connect(message) as server:
            assert server.ticket.pipeline_depth == 1024


def make_strategy(**options) -> SplitFC:
    settings = {"loss_fn": nn.CrossEntropyLoss(), "optimizer": ADAM, **options}
    return SplitFC(seeded(ServerHalf), **settings)


def test_a_depth_where_there_is_none_is_refused_before_training():
    with pytest.raises(ValueError, match="pipeline_depth is 0"):
        make_strategy(pipeline_depth=0)
    with pytest.raises(ValueError, match="the loss is the devices'"):
        make_strategy(pipeline_depth=2, loss_fn=None)
    with pytest.raises(ValueError, match="transport"):
        make_strategy(pipeline_depth=2, endpoint=EndpointConfig(transport="messages"))


def test_last_layers_on_the_device_have_no_pipeline():
    endpoint = SplitEndpoint(
        shared_half(loss_fn=None),
        cut_codec("float32"),
        output_codec=cut_codec("float32"),
    )
    with (
        endpoint,
        connect(ticket_message(endpoint)) as server,
        pytest.raises(RuntimeError, match="last layers on the device"),
    ):
        server.pipelined(seeded(DeviceHalf), batches(1))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_app_takes_the_depth_from_the_run_config(precision, tmp_path):
    def load_data(context):
        data = batches(5, rows=64, seed=context.node_config["partition-id"])
        return data, data

    server = SplitServerApp(DeviceHalf, ServerHalf, nn.CrossEntropyLoss(), ADAM)
    grid = LocalGrid(SplitClientApp(DeviceHalf, load_data, ADAM), 2, workers=1)
    losses = {}
    for depth in (1, 3):
        folder = tmp_path / str(depth)
        settings = {
            "pipeline-depth": depth,
            "device-precision": precision,
            "results-dir": str(folder),
            "num-devices": 2,
            "num-rounds": 4,
        }
        server(grid, Context(1, 1, {}, RecordDict(), settings))
        rounds = json.loads((folder / "results.json").read_text())["rounds"]
        assert [row["steps"] for row in rounds] == 4 * [5]
        losses[depth] = [row["loss"] for row in rounds]
    # the first two losses of the first round are of the same weights, the others not
    assert losses[3] != losses[1]
    assert losses[3][-1] < losses[3][0]


class Bounded(nn.Module):
    """A device half whose forward pass writes into its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(16, 16, max_norm=1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.table(x)


class BoundedAnew(Bounded):
    """A device half whose forward pass gives its weight other memory, and again."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.table.weight
        for bound in (0.5, 0.2):
            weight.data = weight.data.clamp(-bound, bound)
        return self.table(x)


@pytest.mark.parametrize("make", [Bounded, BoundedAnew])
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_what_a_forward_pass_writes_into_weights_stays_there(depth, make):
    device_half = seeded(make)
    ids = torch.arange(16).view(4, 4)
    labels = torch.zeros(4, dtype=torch.int64)
    assert (device_half.table.weight.norm(dim=1) > 1.5).all()
    with make_endpoint(depth) as endpoint, connect(ticket_message(endpoint)) as server:
        for loss in server.pipelined(device_half, [(ids, labels)] * STEPS):
            loss.backward()
    assert (device_half.table.weight.norm(dim=1) < 1.0 + 1e-3).all()
    assert device_half.table.weight.grad.any()
