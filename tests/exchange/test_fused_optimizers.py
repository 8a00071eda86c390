"""Optimizers with fused kernels, which take a parameter's memory and its gradient's as they lie."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord
from torch import Tensor, nn

from flwr_splitfc import SplitClientApp, SplitLearning
from flwr_splitfc.exchange import HalfTrainer
from tests.halves import ServerHalf, batches, same, seeded, weights
from tests.local_grid import LocalGrid
from tests.own_optimizers import Lookahead

LOSS = nn.CrossEntropyLoss()


def wrapped_adam(parameters: Any) -> Lookahead:
    return Lookahead(torch.optim.Adam(parameters, lr=1e-2, fused=True))


FUSED = {
    "adam": partial(torch.optim.Adam, lr=1e-2, fused=True),
    "adamw": partial(torch.optim.AdamW, lr=1e-2, fused=True),
    "adagrad": partial(torch.optim.Adagrad, lr=1e-2, fused=True),
    "sgd": partial(torch.optim.SGD, lr=1e-2, momentum=0.9, fused=True),
    "wrapped": wrapped_adam,
}
every_fused = pytest.mark.parametrize("optimizer", FUSED.values(), ids=FUSED)


class ChannelsLastInside(nn.Module):
    """The gradients by its weights are stored in another order than the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.contiguous(memory_format=torch.channels_last))


class Offset(nn.Module):
    """The gradient by its offset has as many entries, and one in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(1000))
        self.layer = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        return (self.layer(x.flatten(1)) + 1) * self.offset.sum().cos()


def device_half() -> nn.Module:
    """Its weights are stored channels last."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.MaxPool2d(2),
    ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@every_fused
@pytest.mark.parametrize("make", [ChannelsLastInside, Offset, ServerHalf])
def test_a_server_half_trains_as_unsplit(
    make: Callable[[], nn.Module], optimizer: Any
) -> None:
    half = HalfTrainer(seeded(make), LOSS, optimizer, device="cpu")
    unsplit = seeded(make)
    own = optimizer(unsplit.parameters())
    for step in range(4):
        features, labels = torch.rand(16, 4, 4, 4), torch.arange(16) % 4
        half.step(features, labels)
        own.zero_grad()
        LOSS(unsplit(features), labels).backward()
        own.step()
        assert same(weights(half.model), weights(unsplit)), step


@every_fused
def test_state_that_is_handed_on_goes_to_the_same_entries(optimizer: Any) -> None:
    rounds, data = 3, batches(2)
    app = SplitClientApp(
        partial(seeded, device_half), lambda context: (data, data), optimizer
    )
    strategy = SplitLearning(seeded(ServerHalf), LOSS, optimizer, device="cpu")
    arrays = ArrayRecord(seeded(device_half).state_dict())
    result = strategy.start(LocalGrid(app, 2), arrays, rounds)

    device, server = seeded(device_half), seeded(ServerHalf)
    optimizers = [optimizer(device.parameters()), optimizer(server.parameters())]
    for x, y in rounds * data:
        for one in optimizers:
            one.zero_grad()
        LOSS(server(device(x)), y).backward()
        for one in optimizers:
            one.step()
    assert same(result.arrays.to_torch_state_dict(), weights(device))
    assert same(weights(strategy.server_model), weights(server))


def trained_half(optimizer: Any) -> HalfTrainer:
    half = HalfTrainer(seeded(ServerHalf), LOSS, optimizer, device="cpu")
    half.step(*batches(1)[0])
    return half


def checkpoint_of(
    half: HalfTrainer, changed: Callable[[Tensor], Tensor]
) -> dict[str, Any]:
    """Its state, with another tensor in place of each of the optimizer's."""
    state = deepcopy(half.state_dict())
    for values in state["optimizer"]["state"].values():
        for key, value in values.items():
            if isinstance(value, Tensor) and value.ndim:
                values[key] = changed(value)
    return state


@every_fused
@pytest.mark.parametrize("weight", [0.0, float("nan")])
def test_a_checkpoint_with_state_too_small_is_refused(
    optimizer: Any, weight: float
) -> None:
    half = trained_half(optimizer)
    state = checkpoint_of(half, lambda own: own.new_ones(()))
    for value in state["model"].values():
        value.fill_(weight)
    with pytest.raises(ValueError, match=r"has shape \(\), the optimizer's own"):
        half.load_state_dict(state)


@every_fused
def test_a_checkpoint_whose_state_is_one_number_in_memory_is_as_it_reads(
    optimizer: Any,
) -> None:
    wide, narrow = trained_half(optimizer), trained_half(optimizer)
    wide.load_state_dict(checkpoint_of(wide, torch.ones_like))
    narrow.load_state_dict(
        checkpoint_of(narrow, lambda own: own.new_ones(1).expand(own.shape))
    )
    for half in (wide, narrow):
        half.step(*batches(1)[0])
    assert same(weights(wide.model), weights(narrow.model))
