"""A warning where a training loop forgets ``backward()``, and none where it does not."""

import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from flwr_splitfc import connect, cut_codec
from flwr_splitfc.exchange import HalfTrainer, Session, SharedHalf, SplitEndpoint
from tests.exchange.server_halves import ADAM, shared_half
from tests.halves import DeviceHalf, ServerHalf, batches, seeded
from tests.local_grid import ticket_message

HALF = seeded(DeviceHalf)
BATCHES = batches(4)


def without_backward(server: Session) -> None:
    for x, y in BATCHES:
        server.loss(HALF(x), y)


def kept_without_backward(server: Session) -> list[torch.Tensor]:
    return [server.loss(HALF(x), y) for x, y in BATCHES]


def without_graph(server: Session) -> None:
    for x, y in BATCHES:
        server.loss(HALF(x).detach(), y).backward()


def last_without_backward(server: Session) -> None:
    usual(server)
    server.loss(HALF(BATCHES[0][0]), BATCHES[0][1])


def usual(server: Session) -> None:
    for x, y in BATCHES:
        loss = server.loss(HALF(x), y)
        loss.backward()


def sum_of_losses(server: Session) -> None:
    total = torch.zeros(())
    for x, y in BATCHES:
        total = total + server.loss(HALF(x), y)
    total.backward()


def two_at_once(server: Session) -> None:
    (x, y), (other_x, other_y) = BATCHES[:2]
    first = server.loss(HALF(x), y)
    second = server.loss(HALF(other_x), other_y)
    second.backward()
    first.backward()


def predictions(server: Session) -> None:
    with torch.no_grad():
        server.predict(HALF(BATCHES[0][0]))


def batch_left_out(server: Session) -> None:
    """One that the device itself refuses, as its features are not finite."""
    x, y = BATCHES[0]
    with pytest.raises(ValueError, match="finite"):
        server.loss(HALF(x / 0), y)
    usual(server)


def own_loss(server: Session) -> None:
    tail = nn.Linear(4, 4)
    for x, y in BATCHES:
        nn.functional.cross_entropy(tail(server.forward(HALF(x))), y).backward()


def own_loss_without_backward(server: Session) -> None:
    for x, _ in BATCHES:
        server.forward(HALF(x))


@pytest.fixture
def endpoint() -> Iterator[SplitEndpoint]:
    with SplitEndpoint(shared_half(), cut_codec("float32")) as endpoint:
        yield endpoint


@pytest.mark.parametrize(
    ("turn", "warnings"),
    [
        (without_backward, 1),
        (kept_without_backward, 1),
        (last_without_backward, 1),
        (usual, 0),
        (sum_of_losses, 0),
        (two_at_once, 0),
        (predictions, 0),
        (batch_left_out, 0),
    ],
)
def test_a_loss_without_a_backward_pass_is_warned_of_once(
    turn: Callable[[Session], object],
    warnings: int,
    endpoint: SplitEndpoint,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with connect(ticket_message(endpoint, device="kitchen")) as server:
        turn(server)
    check(caplog, warnings)


@pytest.mark.parametrize(
    ("turn", "warnings"), [(own_loss, 0), (own_loss_without_backward, 1)]
)
def test_so_is_an_output(
    turn: Callable[[Session], object], warnings: int, caplog: pytest.LogCaptureFixture
) -> None:
    float32 = cut_codec("float32")
    half = SharedHalf(HalfTrainer(seeded(ServerHalf), None, ADAM, device="cpu"))
    with (
        SplitEndpoint(half, float32, output_codec=float32) as endpoint,
        connect(ticket_message(endpoint, device="kitchen")) as server,
    ):
        turn(server)
    check(caplog, warnings)


def check(caplog: pytest.LogCaptureFixture, warnings: int) -> None:
    said = [line for line in caplog.messages if "does not train" in line]
    assert len(said) == warnings
    assert all(line.startswith("Device kitchen does not train") for line in said)


def with_own_loss(server: Session) -> None:
    without_graph(server)
    HALF(BATCHES[0][0]).sum().backward()


def frozen_at_first(server: Session) -> None:
    without_graph(server)
    usual(server)
    HALF.zero_grad()


@pytest.mark.parametrize(
    ("turn", "is_frozen", "warnings"),
    [
        (without_graph, False, 1),
        (without_graph, True, 0),
        (with_own_loss, False, 0),
        (frozen_at_first, False, 0),
    ],
)
def test_features_without_a_graph_are_fine_where_something_else_trains(
    turn: Callable[[Session], None],
    is_frozen: bool,
    warnings: int,
    endpoint: SplitEndpoint,
    caplog: pytest.LogCaptureFixture,
) -> None:
    HALF.zero_grad()
    frozen = seeded(DeviceHalf).requires_grad_(False)
    optimizer = ADAM((frozen if is_frozen else HALF).parameters())
    message = ticket_message(endpoint, device="kitchen")
    with connect(message, optimizer=optimizer) as server:
        turn(server)
    check(caplog, warnings)


def test_it_keeps_no_graph_alive(endpoint: SplitEndpoint) -> None:
    x, y = BATCHES[0]
    with connect(ticket_message(endpoint)) as server:
        features = HALF(x)
        graph = weakref.ref(features)
        server.loss(features, y)
        del features
        assert graph() is None


def test_a_turn_that_failed_for_another_reason_is_not_blamed_on_it(
    endpoint: SplitEndpoint, caplog: pytest.LogCaptureFixture
) -> None:
    def turn() -> None:
        with connect(ticket_message(endpoint)) as server:
            server.loss(HALF(BATCHES[0][0]), BATCHES[0][1])
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        turn()
    check(caplog, 0)
