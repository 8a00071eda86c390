"""A turn costs a round trip for each step, and one for Flower's message."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, islice
from typing import Any

import grpc
import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from torch import nn

from flwr_splitfc import (
    EndpointConfig,
    HeadAndTail,
    Limits,
    RoundRobin,
    SplitClientApp,
    SplitLearning,
    answer_device_query,
    connect,
    cut_codec,
)
from flwr_splitfc.exchange import LimitExceeded, Session, SplitEndpoint
from flwr_splitfc.exchange.device.stream import Stream
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.server.endpoint.stream_server import StreamServer
from tests.exchange.server_halves import shared_half
from tests.halves import DeviceHalf, ServerHalf, batches, same, seeded, weights
from tests.local_grid import LocalGrid, ticket_message

ADAM = partial(torch.optim.Adam, lr=1e-2)
CROSS_ENTROPY = nn.CrossEntropyLoss()


def load_data(steps: int, context: Context) -> Any:
    data = batches(steps)
    return data, data


def own_loop(steps: int, message: Message, context: Context) -> Message:
    if message.metadata.message_type.startswith("query"):
        return answer_device_query(message, context)
    half = seeded(DeviceHalf)
    content = RecordDict()
    with connect(message, context) as session:
        for x, y in batches(steps):
            if message.metadata.message_type == "train":
                session.loss(half(x), y).backward()
            else:
                session.predict(half(x))
        content["metrics"] = MetricRecord(session.metrics())
    if message.metadata.message_type == "train":
        content["arrays"] = ArrayRecord(half.state_dict())
    return Message(content, reply_to=message)


def round_trips(
    app: Any,
    server: Callable[[], nn.Module] = ServerHalf,
    device: Callable[[], nn.Module] = DeviceHalf,
    **options: Any,
) -> list[int]:
    """Those of a turn of training and of one of evaluation."""
    options = {"loss_fn": CROSS_ENTROPY, **options}
    devices = RoundRobin(min_available_nodes=1, min_evaluate_nodes=1)
    strategy = SplitLearning(
        seeded(server), optimizer=ADAM, devices=devices, device="cpu", **options
    )
    arrays = ArrayRecord(seeded(device).state_dict())
    strategy.start(LocalGrid(app, 1, workers=0), arrays, 1)
    assert not strategy.ledger.failures(1)
    counted = []
    for purpose in ("train", "evaluate"):
        links = strategy.ledger.links(1, purpose)
        counted.append(links["0"][2])
        assert strategy.ledger.of(1, purpose).sessions == 1
    return counted


@pytest.mark.parametrize("transport", ["stream", "messages"])
@pytest.mark.parametrize("steps", [1, 3])
def test_a_turn_of_split_client_app(steps: int, transport: str) -> None:
    app = SplitClientApp(DeviceHalf, partial(load_data, steps), ADAM)
    endpoint = EndpointConfig(transport=transport)
    assert round_trips(app, endpoint=endpoint) == [1 + steps, 1 + steps]


@pytest.mark.parametrize(("steps", "depth", "trips"), [(6, 2, 3), (7, 3, 3), (2, 4, 1)])
def test_steps_under_way_share_a_round_trip(steps: int, depth: int, trips: int) -> None:
    app = SplitClientApp(DeviceHalf, partial(load_data, steps), ADAM)
    assert round_trips(app, pipeline_depth=depth) == [1 + trips, 1 + steps]


@pytest.mark.parametrize("steps", [1, 3])
def test_a_turn_of_a_loop_of_ones_own_has_close_beside(steps: int) -> None:
    assert round_trips(partial(own_loop, steps)) == [2 + steps, 2 + steps]


def test_a_loop_without_a_step_closes_its_session_all_the_same() -> None:
    with SplitEndpoint(shared_half(), cut_codec("float32")) as endpoint:
        with connect(ticket_message(endpoint)):
            pass
        traffic = endpoint.ledger.of(1, "train")
    assert (traffic.round_trips, traffic.sessions) == (1, 1)


@pytest.mark.parametrize("transport", ["stream", "messages"])
def test_a_step_that_is_two_exchanges(transport: str) -> None:
    def middle() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16))

    def tail() -> nn.Module:
        return nn.Linear(16, 4)

    app = SplitClientApp(
        DeviceHalf, partial(load_data, 3), ADAM, tail=tail, loss_fn=CROSS_ENTROPY
    )
    counted = round_trips(
        app,
        middle,
        lambda: HeadAndTail(DeviceHalf(), tail()),
        loss_fn=None,
        endpoint=EndpointConfig(transport=transport),
    )
    assert counted == [1 + 2 * 3, 1 + 3]


# -- the stream's first frame ----------------------------------------------------------

Frames = Iterator[bytes]
Replies = Iterator[pb.ServerFrame]
Handler = Callable[[Frames, grpc.ServicerContext], Replies]


def make_endpoint(change: Callable[[Handler], Handler], **limits: Any) -> SplitEndpoint:
    """An endpoint that serves streams in another way."""
    config = EndpointConfig(limits=Limits(**limits))
    endpoint = SplitEndpoint(shared_half(), cut_codec("float32"), config=config)
    endpoint._server = StreamServer(config, change(endpoint._service.serve))
    return endpoint


def train(endpoint: SplitEndpoint, steps: int = 2) -> dict[str, int | float]:
    """A turn's metrics."""
    half = seeded(DeviceHalf)
    with connect(ticket_message(endpoint)) as session:
        for x, y in batches(steps):
            session.loss(half(x), y).backward()
        return session.metrics()


def test_the_first_frame_does_not_wait_for_the_answer_to_open() -> None:
    """A server that answers nothing before it has two frames hears of them."""

    def patient(serve: Handler) -> Handler:
        def handler(frames: Frames, context: grpc.ServicerContext) -> Replies:
            two = list(islice(frames, 2))
            yield from serve(chain(two, frames), context)

        return handler

    with make_endpoint(patient) as endpoint:
        train(endpoint)
        assert endpoint.halves.half.steps == 2
        # Close is the first frame
        with connect(ticket_message(endpoint, device="1")):
            pass


@pytest.mark.parametrize("answers", [0, 1])
def test_a_connection_that_breaks_right_after_the_first_frame(answers: int) -> None:
    """The step is applied, and its answer is lost, or that to Open, too."""
    streams = []

    def breaking(serve: Handler) -> Handler:
        def handler(frames: Frames, context: grpc.ServicerContext) -> Replies:
            streams.append(context)
            replies = serve(frames, context)
            if len(streams) == 1:
                opened, _ = next(replies), next(replies)
                yield from [opened][:answers]
                # as a proxy does
                context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
            yield from replies

        return handler

    with make_endpoint(lambda serve: serve) as endpoint:
        train(endpoint)
        undisturbed = weights(endpoint.halves.half.model)
        digest = endpoint.ledger.digest()
    with make_endpoint(breaking) as endpoint:
        metrics = train(endpoint)
        assert same(weights(endpoint.halves.half.model), undisturbed)
        assert endpoint.ledger.digest() == digest
        traffic = endpoint.ledger.of(1, "train")
    assert len(streams) == 2
    assert traffic.steps == 2
    assert traffic.reconnects == 1
    assert metrics["reconnects"] == answers
    # two steps, one of them again, and Close
    assert traffic.round_trips == 4
    assert traffic.uplink_bytes["resent"] > 0


def test_a_first_frame_that_is_too_large_is_not_sent_again_and_again() -> None:
    streams = []

    def counted(serve: Handler) -> Handler:
        def handler(frames: Frames, context: grpc.ServicerContext) -> Replies:
            streams.append(context)
            yield from serve(frames, context)

        return handler

    with (
        make_endpoint(counted, max_frame_bytes=1000) as endpoint,
        pytest.raises(LimitExceeded, match="larger than max"),
    ):
        train(endpoint)
    assert len(streams) <= 2


def test_metrics_count_what_was_sent() -> None:
    with SplitEndpoint(shared_half(), cut_codec("float32")) as endpoint:
        ticket = endpoint.issue("train", "0", 1)
        stream = Stream(ticket, closes_by_reply=True)
        x, y = batches(1)[0]
        with Session(ticket, stream) as session:
            assert session.metrics()["uplink_bytes"] == 0
            session.loss(seeded(DeviceHalf)(x), y)
            sent_bytes = session.metrics()["uplink_bytes"]
        assert session.closing is not None
        assert session.closing.number == 2
        endpoint.deliver(ticket.token, session.closing)
        traffic = endpoint.ledger.of(1, "train")
    grpc_bytes = 5 * 4  # of Open, Step, Leave and Close
    close_bytes = session.closing.ByteSize()
    leave_bytes = 2
    beside = close_bytes + leave_bytes + grpc_bytes
    assert traffic.uplink_bytes.total() == sent_bytes + beside
    assert traffic.round_trips == 1
