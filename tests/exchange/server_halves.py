"""Server halves for tests of sessions, and all that training changes of them."""

from functools import partial

import torch
from torch import Tensor, nn

from flwr_splitfc.exchange import HalfTrainer, SharedHalf, SplitEndpoint
from tests.halves import ServerHalf, seeded, weights

ADAM = partial(torch.optim.Adam, lr=1e-2)


def shared_half(
    model: nn.Module | None = None, loss_fn=None, optimizer=ADAM, **options
) -> SharedHalf:
    half = HalfTrainer(
        model or seeded(ServerHalf),
        loss_fn or nn.CrossEntropyLoss(),
        optimizer,
        device="cpu",
        **options,
    )
    return SharedHalf(half)


def half_state(half: HalfTrainer) -> dict[str, Tensor]:
    """A server half's weights and optimizer state, copied."""
    everything = weights(half.model)
    for index, state in half.optimizer.state_dict()["state"].items():
        for key, value in state.items():
            everything[f"{index}.{key}"] = value.clone()
    return everything


def everything(endpoint: SplitEndpoint) -> dict[str, Tensor]:
    """The state of an endpoint's server half, copied."""
    return half_state(endpoint.halves.half)
