"""The shape of features that one device sends binds no other."""

import re
from functools import partial

import pytest
import torch
from torch import nn

from flwr_splitfc import SplitLearning, connect, cut_codec
from flwr_splitfc.codec import CodedMatrix, CutCodec, pack_labels
from flwr_splitfc.exchange import FeaturesRefused, SharedHalf, SplitEndpoint
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.server.half.feature_shapes import as_feature_shape, is_shaped
from tests.exchange.raw_device import RawDevice
from tests.exchange.server_halves import everything, shared_half
from tests.halves import ServerHalf, same, seeded
from tests.local_grid import ticket_message

HONEST = (4, 4, 4)
OTHER = (64,)  # the half begins with Flatten, and takes it, too


LABELS = torch.zeros(8, dtype=torch.long)


def features(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.rand(8, *shape, requires_grad=True)


def make_endpoint(feature_shape=None) -> SplitEndpoint:
    halves = shared_half(feature_shape=feature_shape)
    return SplitEndpoint(halves, cut_codec("float32"))


def train(endpoint: SplitEndpoint, *shapes: tuple[int, ...], device: str = "0") -> None:
    """Take one step with features of each shape."""
    message = ticket_message(endpoint, device=device)
    with connect(message) as session:
        for shape in shapes:
            session.loss(features(shape), LABELS).backward()


def test_a_first_device_with_another_shape_keeps_no_other_out():
    with make_endpoint() as endpoint:
        train(endpoint, OTHER, device="first")
        train(endpoint, HONEST, HONEST, device="second")
        train(endpoint, HONEST, device="third")
        assert endpoint.halves.half.steps == 4


def test_shapes_may_vary_within_a_turn():
    with make_endpoint() as endpoint:
        train(endpoint, HONEST, OTHER, HONEST)
        assert endpoint.halves.half.steps == 3


def test_shapes_may_vary_in_evaluation():
    with (
        make_endpoint() as endpoint,
        connect(ticket_message(endpoint, "evaluate")) as session,
    ):
        for shape in (HONEST, OTHER):
            assert session.predict(torch.rand(8, *shape)).shape == (8, 4)


def test_a_shape_that_the_half_fails_on_fails_its_device_alone():
    with make_endpoint() as endpoint, connect(ticket_message(endpoint)) as honest:
        honest.loss(features(HONEST), LABELS)
        before = everything(endpoint)
        with pytest.raises(FeaturesRefused, match=r"does not take.*\(8, 65\)"):
            train(endpoint, (65,), device="other")
        assert same(everything(endpoint), before)
        honest.loss(features(HONEST), LABELS)
        assert endpoint.halves.half.steps == 2


def test_a_shape_that_the_strategy_gives_binds_all():
    with make_endpoint(HONEST) as endpoint:
        wanted = r"shape \(64,\), feature_shape is \(4, 4, 4\)"
        with pytest.raises(FeaturesRefused, match=wanted):
            train(endpoint, OTHER)
        assert endpoint.halves.half.steps == 0
        train(endpoint, HONEST)


def test_features_that_claim_another_shape_are_not_decoded(monkeypatch):
    """A few bytes may claim what takes seconds and gigabytes to decode."""

    def decoded(codec: CutCodec, coded: CodedMatrix, expect: tuple[int, int]):
        raise AssertionError(f"features of shape {coded.shape} were decoded")

    monkeypatch.setattr(CutCodec, "decode_features", decoded)
    matrix = pb.Matrix(stype=cut_codec("float32").stype, shape=[4096, 32000])
    ids = pb.Part(key="ids", exact=pack_labels(torch.zeros(4096, dtype=torch.long)))
    of_two = [pb.Part(dict=2), pb.Part(key="hidden", coded=matrix), ids]
    wanted = {"hidden": (64,), "ids": ()}
    for step, shape, came in [
        (pb.Step(features=matrix), HONEST, r"\(32000,\)"),
        (pb.Step(parts=of_two), wanted, r"\{'hidden': \(32000,\), 'ids': \(\)\}"),
    ]:
        with make_endpoint(shape) as endpoint:
            device = RawDevice(endpoint, endpoint.issue("train", "0", 1))
            refused = device.ask(pb.DeviceFrame(number=1, step=step)).refused
            device.drop()
        assert refused.reason == pb.FEATURES
        assert re.search(f"of a sample have shape {came}, f", refused.detail)


def test_strategies_take_a_shape():
    adam = partial(torch.optim.Adam, lr=1e-2)
    strategy = SplitLearning(
        seeded(ServerHalf), nn.CrossEntropyLoss(), adam, feature_shape=[4, 4, 4]
    )
    copied = SharedHalf(strategy.half.copy(seed=1)).half
    assert strategy.half.feature_shape == copied.feature_shape == HONEST


SHAPES = [
    ((4, 4, 4), (4, 4, 4), True),
    ((4, 4, 4), torch.zeros(2, 4, 4, 4).shape[1:], True),
    ((4, 4, 4), [4, 4, 4], True),
    ((4, 4, 4), (4, 4, 5), False),
    ((4, 4, 4), (4, 4), False),
    ((7, 64), (None, 64), True),
    ((7, 65), (None, 64), False),
    (((7, 64), (7,)), ([None, 64], [None]), True),
    ([(7, 64), (7,)], ([None, 64], [None]), False),
    ({"hidden": (7, 64), "mask": (7,)}, {"hidden": (7, 64), "mask": (None,)}, True),
    ({"hidden": (7, 64), "mask": (7,)}, {"hidden": (7, 64)}, False),
    ({"hidden": (7, 64)}, (7, 64), False),
    ((7, 64), {"hidden": (7, 64)}, False),
    ({"skips": ((4, 8), (8, 4))}, {"skips": ((4, 8), (8, None))}, True),
]


@pytest.mark.parametrize(("shapes", "wanted", "fit"), SHAPES)
def test_shapes(shapes, wanted, fit):
    assert is_shaped(shapes, as_feature_shape(wanted)) is fit
