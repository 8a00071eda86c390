"""Further steps of the server half on mini-batches of before."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from flwr_splitfc import SplitFedV1, connect, cut_codec
from flwr_splitfc.exchange import HalfTrainer, SharedHalf, SplitEndpoint
from flwr_splitfc.exchange.server.half import replay_memory
from tests.halves import DeviceHalf, ServerHalf, batches, same, seeded, weights
from tests.local_grid import ticket_message

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
LOSS = nn.CrossEntropyLoss()
FEATURES, CLASSES, ROWS = 8, 3, 4
BATCH_BYTES = 4 * ROWS * FEATURES + 8 * ROWS

Batch = tuple[Tensor, Tensor]


class InPlace(nn.Module):
    """A half that writes into what it is given."""

    def __init__(self, inplace: bool = True) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5, inplace=inplace)
        self.layer = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.dropout(x))


def half(model: nn.Module | None = None, loss=LOSS, **options) -> HalfTrainer:
    model = model or seeded(partial(nn.Linear, FEATURES, CLASSES))
    options = {"replay_steps": 1, "device": "cpu", **options}
    return HalfTrainer(model, loss, SGD, **options)


def batch(seed: int) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    features = torch.randn(ROWS, FEATURES, generator=draw)
    return features, torch.randint(CLASSES, (ROWS,), generator=draw)


def trained(trainer: HalfTrainer, steps: int = 5) -> HalfTrainer:
    for seed in range(steps):
        trainer.step(*batch(seed))
    return trainer


def test_a_prediction_between_a_step_and_its_end_skips_no_replay():
    asked = half()
    for seed in range(5):
        begun = asked.begin_step(*batch(seed))
        asked.predict(batch(seed)[0])
        begun.finish()
    assert same(weights(asked.model), weights(trained(half()).model))


def test_each_batch_is_followed_by_the_one_before_it(monkeypatch):
    model = seeded(partial(nn.Linear, FEATURES, CLASSES))
    optimizer = SGD(model.parameters())

    def step(features: Tensor, labels: Tensor) -> Tensor:
        features = features.clone().requires_grad_()
        optimizer.zero_grad()
        LOSS(model(features), labels).backward()
        optimizer.step()
        return features.grad

    # there is room for one
    monkeypatch.setattr(replay_memory, "MOST_BYTES", BATCH_BYTES)
    trainer = half(replay_steps=2)
    for seed in range(4):
        _, gradient = trainer.step(*batch(seed))
        assert torch.equal(gradient, step(*batch(seed)))
        if seed:
            step(*batch(seed - 1))
            step(*batch(seed - 1))
    assert same(weights(trainer.model), weights(model))
    assert trainer.steps == 4


def test_a_batch_without_room_is_not_kept_and_warned_of_once(monkeypatch, caplog):
    monkeypatch.setattr(replay_memory, "MOST_BYTES", BATCH_BYTES - 1)
    with caplog.at_level("WARNING", "flwr"):
        kept_none = trained(half())
    assert same(weights(kept_none.model), weights(trained(half(replay_steps=0)).model))
    [record] = caplog.records
    assert "is not replayed: replay_steps keeps" in record.getMessage()


def test_a_batch_without_room_drops_no_other(monkeypatch):
    """A device may send one: the others' are still replayed."""
    monkeypatch.setattr(replay_memory, "MOST_BYTES", 2 * BATCH_BYTES)
    memory = replay_memory.ReplayMemory()
    kept = replay_memory.KeptBatch.of(*batch(0))
    memory.keep(kept)
    x, y = batch(1)
    memory.keep(replay_memory.KeptBatch.of(x.repeat(3, 1), y.repeat(3)))
    drawn = memory.draw(torch.Generator())
    assert drawn is not None
    assert torch.equal(drawn.features, kept.features)


def test_the_same_seed_draws_the_same_batches():
    once, again = trained(half(seed=3)), trained(half(seed=3))
    assert same(weights(once.model), weights(again.model))
    other = trained(half(seed=4))
    assert not same(weights(once.model), weights(other.model))


def test_a_half_that_writes_into_features():
    def of(inplace: bool) -> dict[str, Tensor]:
        # slowly: a half that grows is tried out with a gradient
        slow_sgd = partial(torch.optim.SGD, lr=0.001)
        model = seeded(partial(InPlace, inplace))
        trainer = HalfTrainer(model, LOSS, slow_sgd, device="cpu", replay_steps=2)
        for seed in range(5):
            # without a gradient, or torch would refuse to write into a leaf
            trainer.begin_step(*batch(seed), wanted=[False]).finish()
        return weights(trainer.model)

    assert same(of(inplace=True), of(inplace=False))


def test_a_loss_that_writes_into_labels():
    def smooth(labels: Tensor) -> Tensor:
        return labels.mul_(0.9).add_(0.1)

    def of(loss) -> dict[str, Tensor]:
        trainer = half(loss=loss, replay_steps=2)
        for seed in range(4):
            features, labels = batch(seed)
            trainer.step(features, nn.functional.one_hot(labels, CLASSES).float())
        return weights(trainer.model)

    writing = of(lambda outputs, labels: LOSS(outputs, smooth(labels)))
    assert same(
        writing, of(lambda outputs, labels: LOSS(outputs, smooth(labels.clone())))
    )


def test_a_replay_that_fails_harms_nothing():
    calls = 0

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        # of each batch but the first, the second call is the replay
        is_replay = calls > 1 and calls % 2 == 1
        return LOSS(outputs, labels) * (float("nan") if is_replay else 1.0)

    plain = trained(half(replay_steps=0))
    failing = trained(half(loss=loss))
    assert calls == 1 + 2 * 4
    assert same(weights(failing.model), weights(plain.model))


def test_the_scheduler_goes_by_fresh_batches():
    step = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    assert trained(half(scheduler=step)).scheduler.get_last_lr() == [0.1 * 0.5**5]


def test_a_session():
    trainer = HalfTrainer(seeded(ServerHalf), LOSS, SGD, device="cpu", replay_steps=3)
    endpoint = SplitEndpoint(SharedHalf(trainer), cut_codec("float32"))
    device_half = seeded(DeviceHalf)
    with endpoint, connect(ticket_message(endpoint)) as session:
        for x, y in batches(4):
            session.loss(device_half(x), y).backward()
        assert session.metrics()["steps"] == 4
    assert trainer.steps == 4


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"replay_steps": -1}, "replay_steps is -1"),
        ({"loss": None}, "the loss is the devices'"),
        ({"accumulate_steps": 2}, "accumulate_steps 2"),
        ({"merge_steps": 2}, "merge_steps 2"),
    ],
)
def test_what_cannot_be_replayed(options, why):
    with pytest.raises(ValueError, match=why):
        half(**options)


def test_copies_of_the_half():
    with pytest.raises(ValueError, match="a copy of the server half"):
        SplitFedV1(seeded(ServerHalf), LOSS, SGD, replay_steps=1)
