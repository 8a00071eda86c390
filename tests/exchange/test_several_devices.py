"""Copies of the server half on several torch devices; on CPUs the same code runs."""

from functools import partial

import pytest
import torch
from torch import nn

from flwr_splitfc import SplitFedV1, SplitFedV2
from flwr_splitfc.exchange import CopiedHalves, HalfTrainer
from tests.halves import same, weights

SGD = partial(torch.optim.SGD, lr=0.1)
LOSS = nn.CrossEntropyLoss()
# two names of the same cores
DEVICES = [torch.device("cpu"), torch.device("cpu:0")]


def trained(devices: list[torch.device]) -> tuple[CopiedHalves, list[HalfTrainer]]:
    """A round of four copies of a half with dropout."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    halves = CopiedHalves(HalfTrainer(model, LOSS, SGD, device="cpu", seed=1), devices)
    copies = [halves.take(str(name), 1) for name in range(4)]
    for number, copy in enumerate(copies):
        draw = torch.Generator().manual_seed(number)
        features = torch.randn(5, 6, generator=draw)
        copy.step(features, torch.randint(3, (5,), generator=draw))
        halves.give_back(copy, rows=5)
    halves.end_round()
    return halves, copies


def test_copies_take_turns_on_the_devices() -> None:
    halves, copies = trained(DEVICES)
    assert [copy.device for copy in copies] == DEVICES * 2
    assert halves.steps_at_once == 2


def test_the_average_does_not_depend_on_where_copies_train() -> None:
    on_one, _ = trained([])
    on_two, _ = trained(DEVICES)
    assert on_one.steps_at_once == 1
    assert same(weights(on_one.half.model), weights(on_two.half.model))


@pytest.mark.gpu
def test_copies_on_every_gpu() -> None:
    gpus = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    halves, copies = trained(gpus)
    assert {copy.device for copy in copies} <= set(gpus)
    torch.testing.assert_close(
        weights(halves.half.model), weights(trained(gpus)[0].half.model)
    )


def test_a_strategy_spreads_copies_and_no_shared_half() -> None:
    strategy = SplitFedV1(nn.Linear(3, 2), LOSS, SGD, device=["cpu", "cpu:0"])
    assert strategy.half.device == torch.device("cpu")
    assert strategy._endpoint(None).halves.steps_at_once == 2
    with pytest.raises(ValueError, match="the server half is one for all"):
        SplitFedV2(nn.Linear(3, 2), LOSS, SGD, device=["cpu", "cpu:0"])
