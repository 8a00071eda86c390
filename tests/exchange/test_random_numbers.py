"""What a server half draws, in dropout, is its own, whatever else is trained at the same time."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor, nn

from flwr_splitfc.exchange import HalfTrainer
from tests.halves import same, seeded, weights

COPIES = 4
STEPS = 40


def half_with_dropout() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 64),
        nn.Dropout(0.5),
        nn.Linear(64, 64),
        nn.Dropout(0.5),
        nn.Linear(64, 4),
    )


def test_copies_that_train_at_the_same_time_end_as_one_after_another():
    sgd = partial(torch.optim.SGD, lr=0.1)
    half = HalfTrainer(
        seeded(half_with_dropout), nn.CrossEntropyLoss(), sgd, device="cpu"
    )
    features = torch.rand(STEPS, 16, 4, 4, 4)
    labels = torch.randint(4, (STEPS, 16))

    def trained(seed: int) -> dict[str, Tensor]:
        copy = half.copy(seed)
        for x, y in zip(features, labels, strict=True):
            copy.step(x, y)
        return weights(copy.model)

    alone = [trained(seed) for seed in range(COPIES)]
    with ThreadPoolExecutor(COPIES) as pool:
        together = list(pool.map(trained, range(COPIES)))
    for one, other in zip(alone, together, strict=True):
        assert same(one, other)
