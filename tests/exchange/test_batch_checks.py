"""What is no batch is refused by the device itself, which says what was wanted."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from flwr_splitfc import connect, cut_codec
from flwr_splitfc.exchange import Session, SplitEndpoint
from tests.exchange.server_halves import everything, shared_half
from tests.halves import DeviceHalf, batches, same, seeded
from tests.local_grid import ticket_message

HALF = seeded(DeviceHalf)
X, Y = batches(1)[0]


@pytest.fixture
def endpoint() -> Iterator[SplitEndpoint]:
    with SplitEndpoint(shared_half(), cut_codec("float32")) as endpoint:
        yield endpoint


class Named(NamedTuple):
    hidden: torch.Tensor
    mask: torch.Tensor


@dataclass
class Output:
    hidden: torch.Tensor


def nested(depth: int) -> Any:
    return [nested(depth - 1)] if depth else HALF(X)


FEATURES = [
    (HALF(X).detach().numpy(), TypeError, "got ndarray, wanted a Tensor, or a tuple"),
    (Named(HALF(X), Y), TypeError, r"got Named of 2, .*names .* tuple\(features\)"),
    (
        pack_sequence([*X[:, 0]]),
        TypeError,
        r": pad_packed_sequence\(features, batch_fi",
    ),
    (Output(HALF(X)), TypeError, "got Output, wanted a Tensor, or a tuple, list"),
    ((HALF(X), 4), TypeError, "got int, wanted a Tensor"),
    ({1: HALF(X)}, TypeError, "got a dict with the key 1, wanted a str"),
    (nested(9), ValueError, "more than 8 deep"),
    ([HALF(X)] * 128, ValueError, "129 parts, at most 128"),
    ((), ValueError, "got features of no tensor"),
    ({"ids": Y, "mask": Y > 0}, ValueError, "torch.int64, torch.bool, .*embedding"),
    ((HALF(X), HALF(X)[:8]), ValueError, r"\(8, 4, 4, 4\)\), wanted as many rows"),
    ((HALF(X), HALF(X).mean()), ValueError, r"shape \(\), .* a row for each sample"),
    (HALF(X).to(torch.complex64), ValueError, "complex64, .*view_as_real"),
    (HALF(X).sum(), ValueError, r"shape \(\), .* a row for each sample"),
    (HALF(X).sum((1, 2, 3)), ValueError, r"shape \(16,\), .*features\.unsqueeze\(1\)"),
    (torch.arange(16)[:, None], ValueError, "torch.int64, .*through the embedding"),
    (HALF(X).flatten(1).to_sparse(), ValueError, r"sparse_coo, .*to_dense"),
]
LABELS = [
    (Y.tolist(), TypeError, r"got list of 16 as labels, .*torch\.as_tensor\(labels\)"),
    (None, TypeError, "got NoneType as labels, wanted a Tensor"),
    (Y[0], ValueError, r"labels of shape \(\)"),
]


def refused(call: Any, *given: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(*given)


@pytest.mark.parametrize(("features", "error", "message"), FEATURES)
def test_features(
    features: Any, error: type[Exception], message: str, endpoint: SplitEndpoint
) -> None:
    before = everything(endpoint)

    def turn(server: Session) -> None:
        loss = f"server.loss .*{message}"
        refused(server.loss, features, Y, error=error, message=loss)
        predict = f"server.predict .*{message}"
        refused(server.predict, features, error=error, message=predict)

    with connect(ticket_message(endpoint)) as server:
        turn(server)
    assert same(everything(endpoint), before)


@pytest.mark.parametrize(("labels", "error", "message"), LABELS)
def test_labels(
    labels: Any, error: type[Exception], message: str, endpoint: SplitEndpoint
) -> None:
    before = everything(endpoint)
    with connect(ticket_message(endpoint)) as server:
        refused(server.loss, HALF(X), labels, error=error, message=message)
    assert same(everything(endpoint), before)


def test_swapped(endpoint: SplitEndpoint) -> None:
    with connect(ticket_message(endpoint)) as server:
        message = "features come first, labels second"
        refused(server.loss, Y, HALF(X), error=ValueError, message=message)


@pytest.mark.parametrize("made", [list, tuple, iter], ids=["list", "tuple", "iterator"])
def test_several_optimizers(made: Any, endpoint: SplitEndpoint) -> None:
    optimizers = made([torch.optim.SGD(HALF.parameters())] * 2)
    message = r"as optimizer, .*two groups of parameters, or .*optimizer_state='fresh'"
    with pytest.raises(TypeError, match=message):
        connect(ticket_message(endpoint), optimizer=optimizers)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_any_floating_point_type_is_taken(
    dtype: torch.dtype, endpoint: SplitEndpoint
) -> None:
    with connect(ticket_message(endpoint)) as server:
        server.loss(HALF(X).to(dtype), Y).backward()
    assert server.metrics()["steps"] == 1


def test_numbers_that_are_not_finite(endpoint: SplitEndpoint) -> None:
    wrong = HALF(X).masked_fill(X.mean() < 1e9, torch.nan)
    other = HALF(X).detach() + 0.5
    advice = "hold NaN or inf; .*features.masked_fill"
    with connect(ticket_message(endpoint)) as server:
        for call in (server.predict, lambda features: server.loss(features, Y)):
            alone = rf"the features of shape \(16, 4, 4, 4\) {advice}"
            refused(call, wrong, error=ValueError, message=alone)
            second = rf"features \(tensor 2 of 2\) of shape .* {advice}"
            both = {"other": other, "features": wrong}
            refused(call, both, error=ValueError, message=second)


def test_an_optimizer_that_asks_for_the_loss_several_times(
    endpoint: SplitEndpoint,
) -> None:
    optimizer = torch.optim.LBFGS(HALF.parameters())
    with pytest.raises(ValueError, match=r"LBFGS .*the server half trains each"):
        connect(ticket_message(endpoint), optimizer=optimizer)
    # a loss of the device's own may be asked for as often as it likes
    codec = cut_codec("float32")
    with SplitEndpoint(shared_half(), codec, decoupled=True) as decoupled:
        connect(ticket_message(decoupled), optimizer=optimizer)
