"""The shape of features that one device sends binds no other."""

from functools import partial

import pytest
import torch
from torch import nn

from flwr_splitfc import SplitLearning, connect, cut_codec
from flwr_splitfc.exchange import FeaturesRefused, SharedHalf, SplitEndpoint
from tests.exchange.server_halves import shared_half
from tests.halves import ServerHalf, seeded
from tests.local_grid import ticket_message

HONEST = (4, 4, 4)
OTHER = (64,)  # the half begins with Flatten, and takes it, too


def make_endpoint(feature_shape=None) -> SplitEndpoint:
    halves = shared_half(feature_shape=feature_shape)
    return SplitEndpoint(halves, cut_codec("float32"))


def train(endpoint: SplitEndpoint, *shapes: tuple[int, ...], device: str = "0") -> None:
    """Take one step with features of each shape."""
    message = ticket_message(endpoint, device=device)
    with connect(message) as session:
        for shape in shapes:
            features = torch.rand(8, *shape, requires_grad=True)
            session.loss(features, torch.zeros(8, dtype=torch.long)).backward()


def test_a_first_device_with_another_shape_keeps_no_other_out():
    with make_endpoint() as endpoint:
        train(endpoint, OTHER, device="first")
        train(endpoint, HONEST, HONEST, device="second")
        train(endpoint, HONEST, device="third")
        assert endpoint.halves.half.steps == 4


def test_a_turn_keeps_to_its_first_shape():
    with make_endpoint() as endpoint:
        with pytest.raises(FeaturesRefused, match=r"\(64,\).*takes \(4, 4, 4\)"):
            train(endpoint, HONEST, OTHER)
        assert endpoint.halves.half.steps == 1


def test_evaluation_keeps_to_its_first_shape_too():
    with (
        make_endpoint() as endpoint,
        pytest.raises(FeaturesRefused, match="takes"),
        connect(ticket_message(endpoint, "evaluate")) as session,
    ):
        session.predict(torch.rand(8, *HONEST))
        session.predict(torch.rand(8, *OTHER))


def test_a_shape_that_the_strategy_gives_binds_all():
    with make_endpoint(HONEST) as endpoint:
        with pytest.raises(FeaturesRefused, match=r"\(64,\).*takes \(4, 4, 4\)"):
            train(endpoint, OTHER)
        assert endpoint.halves.half.steps == 0
        train(endpoint, HONEST)


def test_strategies_take_a_shape():
    adam = partial(torch.optim.Adam, lr=1e-2)
    strategy = SplitLearning(
        seeded(ServerHalf), nn.CrossEntropyLoss(), adam, feature_shape=[4, 4, 4]
    )
    copied = SharedHalf(strategy.half.copy(seed=1)).half
    assert strategy.half.feature_shape == copied.feature_shape == HONEST
