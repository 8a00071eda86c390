"""Features and labels may be of a subclass of torch's tensors, such as MONAI's."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flwr_splitfc import connect, cut_codec
from flwr_splitfc.exchange import Session, SplitEndpoint
from tests.exchange.server_halves import shared_half
from tests.exchange.test_u_shape import make_endpoint
from tests.halves import DeviceHalf, batches, same, seeded, weights
from tests.local_grid import ticket_message

X, Y = batches(1)[0]


class Whole(Tensor):
    """What comes of it in a computation is another one, and it cannot be sliced."""

    def __getitem__(self, index: Any) -> Tensor:
        raise NotImplementedError("only whole tensors know what they show")


def as_whole(tensor: Tensor) -> Tensor:
    return tensor.as_subclass(Whole)


def as_it_is(tensor: Tensor) -> Tensor:
    return tensor


@contextmanager
def session_with(endpoint: SplitEndpoint, purpose: str = "train") -> Iterator[Session]:
    with connect(ticket_message(endpoint, purpose)) as session:
        yield session


def by_loss(kind: Any, half: nn.Module, session: Session) -> Tensor:
    loss = session.loss(half(kind(X)), kind(Y))
    loss.backward()
    return loss


def by_structure(kind: Any, half: nn.Module, session: Session) -> Tensor:
    features = half(kind(X))
    loss = session.loss({"features": features, "ids": kind(Y)}, kind(Y))
    loss.backward()
    return loss


def by_pipeline(kind: Any, half: nn.Module, session: Session) -> Tensor:
    (loss,) = session.pipelined(half, [(kind(X), kind(Y))])
    loss.backward()
    return loss


def by_sending(kind: Any, half: nn.Module, session: Session) -> Tensor:
    session.send(half(kind(X)), kind(Y))
    return torch.zeros(())


def by_predicting(kind: Any, half: nn.Module, session: Session) -> Tensor:
    return session.predict(half(kind(X)))


class Picked(nn.Module):
    """A server half for a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))

    def forward(self, parts: dict[str, Tensor]) -> Tensor:
        return self.layers(parts["features"])


@pytest.mark.parametrize("codec", ["splitfc-rd", "splitfc", "float32"])
@pytest.mark.parametrize(
    "use", [by_loss, by_structure, by_pipeline, by_sending, by_predicting]
)
def test_they_go_up_as_plain_ones(codec: str, use: Callable[..., Tensor]) -> None:
    def train(kind: Any) -> tuple[Any, ...]:
        half = seeded(DeviceHalf)
        server_half = seeded(Picked) if use is by_structure else None
        cut = cut_codec(codec, uplink_bits=4, downlink_bits=4)
        with SplitEndpoint(shared_half(server_half), cut) as endpoint:
            with session_with(endpoint) as session:
                result = use(kind, half, session)
            trained = weights(endpoint.halves.half.model)
            # of what goes one way, no gradient comes down
            gradients = [
                parameter.grad
                for parameter in half.parameters()
                if parameter.grad is not None
            ]
            return endpoint.ledger.digest(), result, trained, gradients

    digest, result, trained, gradients = train(as_whole)
    wanted_digest, wanted, wanted_trained, wanted_gradients = train(as_it_is)
    assert digest == wanted_digest
    assert type(result) is Tensor
    assert torch.equal(result, wanted)
    assert same(trained, wanted_trained)
    assert len(gradients) == len(wanted_gradients)
    assert all(map(torch.equal, gradients, wanted_gradients))


def test_so_they_do_where_the_last_layers_are_the_devices() -> None:
    def train(kind: Any) -> tuple[Any, ...]:
        half = seeded(DeviceHalf)
        options = {"codec": "splitfc", "output_codec": "splitfc", "bits": (4, 4)}
        with make_endpoint(**options) as endpoint:
            with session_with(endpoint) as session:
                output = session.forward(half(kind(X)))
                nn.functional.cross_entropy(output, kind(Y)).backward()
            with session_with(endpoint, "evaluate") as session:
                predicted = session.predict(half(kind(X)))
            gradient = next(half.parameters()).grad
            return endpoint.ledger.digest(), output, predicted, gradient

    (digest, *tensors), (wanted_digest, *wanted) = train(as_whole), train(as_it_is)
    assert digest == wanted_digest
    assert [type(tensor) for tensor in tensors[:2]] == [Tensor, Tensor]
    assert all(map(torch.equal, tensors, wanted))
