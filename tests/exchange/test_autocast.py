"""Sessions in a training loop under `torch.autocast`."""

import pytest
import torch

from flwr_splitfc import connect, cut_codec
from flwr_splitfc.exchange import SplitEndpoint
from tests.exchange.server_halves import shared_half
from tests.exchange.test_u_shape import make_endpoint
from tests.halves import DeviceHalf, batches, same, seeded, weights
from tests.local_grid import ticket_message

X, Y = batches(1)[0]


def bfloat16_features() -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        features = seeded(DeviceHalf)(X)
    assert features.dtype == torch.bfloat16
    return features.detach().requires_grad_()


@pytest.mark.parametrize(
    "codec", ["float32", "splitfc", "quant-only", "fedlite", "top-s"]
)
def test_codecs_and_server_half_stay_in_float32(codec: str) -> None:
    def train(features: torch.Tensor, autocast: bool) -> tuple[object, ...]:
        cut = cut_codec(codec, uplink_bits=4, downlink_bits=4)
        with SplitEndpoint(shared_half(), cut) as endpoint:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                with connect(ticket_message(endpoint)) as server:
                    loss = server.loss(features, Y)
                    loss.backward()
                with connect(ticket_message(endpoint, "evaluate")) as server:
                    predicted = server.predict(features.detach())
            return (
                endpoint.ledger.digest(),
                weights(endpoint.halves.half.model),
                loss,
                predicted,
                features.grad,
            )

    features = bfloat16_features()
    digest, model, loss, predicted, gradient = train(features, autocast=True)
    assert gradient.dtype == torch.bfloat16
    assert loss.dtype == predicted.dtype == torch.float32

    in_float32 = features.detach().float().requires_grad_()
    wanted = train(in_float32, autocast=False)
    wanted_digest, wanted_model, wanted_loss, wanted_predicted, wanted_gradient = wanted
    assert digest == wanted_digest
    assert same(model, wanted_model)
    assert torch.equal(loss, wanted_loss)
    assert torch.equal(predicted, wanted_predicted)
    assert torch.equal(gradient, wanted_gradient.bfloat16())


@pytest.mark.parametrize("codec", ["float32", "splitfc", "fedlite"])
def test_both_cuts_of_a_u_shape(codec: str) -> None:
    def train(features: torch.Tensor, autocast: bool) -> tuple[object, ...]:
        with make_endpoint(codec=codec, output_codec=codec, bits=(4, 4)) as endpoint:
            with (
                torch.autocast("cpu", torch.bfloat16, enabled=autocast),
                connect(ticket_message(endpoint)) as server,
            ):
                output = server.forward(features)
                output.square().sum().backward()
            return endpoint.ledger.digest(), output, features.grad

    features = bfloat16_features()
    digest, output, gradient = train(features, autocast=True)
    in_float32 = features.detach().float().requires_grad_()
    wanted_digest, wanted_output, wanted_gradient = train(in_float32, autocast=False)
    assert digest == wanted_digest
    assert torch.equal(output, wanted_output)
    assert torch.equal(gradient, wanted_gradient.bfloat16())


def test_a_scaled_loss_keeps_small_gradients_from_underflow() -> None:
    """As with `torch.amp.GradScaler`: float16 ends at 6e-8."""
    scale = 2.0**16

    def gradient(features: torch.Tensor) -> torch.Tensor:
        small = shared_half(loss_fn=lambda outputs, labels: outputs.sum() * 1e-9)
        with (
            SplitEndpoint(small, cut_codec("float32")) as endpoint,
            connect(ticket_message(endpoint)) as server,
        ):
            (server.loss(features, Y) * scale).backward()
        assert features.grad is not None
        return features.grad

    features = seeded(DeviceHalf)(X).detach()
    in_float16 = gradient(features.half().requires_grad_())
    wanted = gradient(features.half().float().requires_grad_())
    assert wanted.any()
    assert torch.equal(in_float16, wanted.half())
