"""Mini-batches that wait together make one step: the mean gradient, and each its own."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from flwr_splitfc import SplitFedV1, connect, cut_codec
from flwr_splitfc.exchange import (
    HalfTrainer,
    LabelsRefused,
    SharedHalf,
    SplitEndpoint,
    StepRefused,
)
from flwr_splitfc.exchange.server.half.half_steps import BegunStep, Update
from tests.halves import DeviceHalf, batches, same, seeded, weights
from tests.local_grid import ticket_message

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
ADAM = partial(torch.optim.Adam, lr=0.01)
LOSS = nn.CrossEntropyLoss()

Batch = tuple[Tensor, Tensor]


class Gated(nn.Module):
    """A half whose first forward pass waits until it is let on."""

    def __init__(self) -> None:
        super().__init__()
        pool, flatten = nn.AdaptiveAvgPool2d(2), nn.Flatten()
        self.layers = nn.Sequential(pool, flatten, nn.Linear(16, 3))
        self.begun = threading.Event()
        self.goes_on = threading.Event()

    def forward(self, x: Tensor) -> Tensor:
        self.begun.set()
        self.goes_on.wait()
        return self.layers(x)


def trainer(optimizer=SGD, merge_steps: int = 8, **options) -> HalfTrainer:
    half = HalfTrainer(
        seeded(Gated), LOSS, optimizer, device="cpu", merge_steps=merge_steps, **options
    )
    half.record_updates = True
    return half


def batch(rows: int, seed: int, side: int = 4) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    features = torch.randn(rows, 4, side, side, generator=draw)
    return features, torch.randint(3, (rows,), generator=draw)


def begin_together(half: HalfTrainer, waiting: Sequence[Batch]) -> list[Future]:
    """Begin a first step, and those of batches that come while it is made."""
    model = half._model
    with ThreadPoolExecutor(len(waiting) + 1) as pool:
        first = pool.submit(half.begin_step, *batch(4, seed=100), Update(1, "first", 0))
        model.begun.wait()
        steps = []
        for number, (features, labels) in enumerate(waiting):
            origin = Update(1, str(number), 0)
            steps.append(pool.submit(half.begin_step, features, labels, origin))
            while len(half._merger._queue) <= number:
                time.sleep(0.001)
        model.goes_on.set()
    first.result().finish()
    return steps


def finished(step: Future) -> BegunStep:
    begun: BegunStep = step.result()
    begun.finish()
    return begun


def reference(optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The same half after the first step, in plain torch."""
    model = seeded(Gated)
    model.goes_on.set()
    made = optimizer(model.parameters())
    features, labels = batch(4, seed=100)
    LOSS(model(features), labels).backward()
    made.step()
    made.zero_grad()
    return model, made


@pytest.mark.parametrize("optimizer", [SGD, ADAM])
def test_one_step_of_the_mean_gradient(optimizer: Callable) -> None:
    waiting = [batch(rows, seed=rows) for rows in (5, 8, 3)]
    half = trainer(optimizer)
    steps = [finished(step) for step in begin_together(half, waiting)]

    model, made = reference(optimizer)
    for step, (features, labels) in zip(steps, waiting, strict=True):
        leaf = features.detach().clone().requires_grad_()
        loss = LOSS(model(leaf), labels)
        loss.backward()
        assert step.loss == pytest.approx(loss.item(), rel=1e-6)
        # of its own loss, and not of a mean
        torch.testing.assert_close(step.gradients[0], leaf.grad)
    for parameter in model.parameters():
        parameter.grad /= len(waiting)
    made.step()
    torch.testing.assert_close(weights(half.model), weights(model))
    assert half.steps == 4
    assert [update.merged for update in half.updates] == [1, 3, 3, 3]


def with_features(value: float) -> Batch:
    features, labels = batch(4, seed=1)
    # one of the two is classified wrongly
    features[0], features[1], labels[:2] = value, -value, 0
    return features, labels


HOSTILE = {
    "a label out of range": (batch(2, 0)[0], torch.tensor([0, 99]), LabelsRefused),
    "a loss that is not finite": (*with_features(torch.nan), StepRefused),
    "a gradient beyond all bounds": (*with_features(1e30), StepRefused),
    "weights that cannot be trained": (*with_features(1e16), StepRefused),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("place", [0, 1, 3])
def test_a_hostile_batch_spoils_no_other(name: str, place: int) -> None:
    features, labels, error = HOSTILE[name]
    good = [batch(4, seed=seed) for seed in range(3)]
    waiting = [*good[:place], (features, labels), *good[place:]]
    half = trainer()
    steps = begin_together(half, waiting)
    with pytest.raises(error):
        finished(steps.pop(place))
    for step in steps:
        finished(step)

    alone = trainer(merge_steps=1)
    alone._model.goes_on.set()
    alone.step(*batch(4, seed=100))
    for one in good:
        alone.step(*one)
    assert same(weights(half.model), weights(alone.model))
    assert half.steps == 4


def test_batches_of_other_shapes_are_stepped_for_themselves() -> None:
    waiting = [batch(4, 1), batch(4, 2), batch(4, 3, side=6), batch(4, 4)]
    half = trainer()
    for step in begin_together(half, waiting):
        finished(step)
    merged = {update.device: update.merged for update in half.updates}
    assert merged == {"first": 1, "0": 2, "1": 2, "2": 1, "3": 1}


def test_no_more_than_the_limit() -> None:
    half = trainer(merge_steps=2)
    for step in begin_together(half, [batch(4, seed) for seed in range(5)]):
        finished(step)
    assert [update.merged for update in half.updates] == [1, 2, 2, 2, 2, 1]


def test_devices_that_want_no_gradient_get_none() -> None:
    half = trainer()
    half._model.goes_on.set()
    features, labels = batch(4, 1)
    begun = half.begin_step(features, labels, wanted=[False])
    begun.finish()
    assert begun.gradients == []


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"merge_steps": 0}, "merge_steps is 0, wanted 1 or more"),
        ({"merge_steps": 2, "accumulate_steps": 2}, "give one"),
        ({"merge_steps": 2, "loss_fn": None}, "the loss is the devices'"),
        ({"merge_steps": 2, "model": nn.BatchNorm1d(3)}, "batch normalisation"),
    ],
)
def test_what_cannot_be_merged(options: dict, named: str) -> None:
    settings = {"model": nn.Linear(3, 2), "loss_fn": LOSS, "optimizer": SGD, **options}
    with pytest.raises(ValueError, match=named):
        HalfTrainer(**settings)


def test_copies_are_not_merged() -> None:
    with pytest.raises(ValueError, match="each device has a copy"):
        SplitFedV1(nn.Linear(3, 2), LOSS, SGD, merge_steps=2)


def test_sessions_are_applied_once_each() -> None:
    half = HalfTrainer(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 4)),
        LOSS,
        SGD,
        device="cpu",
        merge_steps=4,
    )
    half.record_updates = True
    with SplitEndpoint(SharedHalf(half), cut_codec("float32")) as endpoint:

        def device(name: int) -> None:
            with connect(ticket_message(endpoint, device=str(name))) as session:
                for x, y in batches(10, seed=name):
                    session.loss(seeded(DeviceHalf)(x), y)

        threads = [threading.Thread(target=device, args=(name,)) for name in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert half.steps == 80
    came = {(update.device, update.step) for update in half.updates}
    assert came == {(str(name), step) for name in range(8) for step in range(1, 11)}
