"""A step is applied as a whole, or not at all, whatever goes wrong in it."""

from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flwr_splitfc import SplitError, connect, cut_codec
from flwr_splitfc.exchange import HalfTrainer, SplitEndpoint, StepRefused
from flwr_splitfc.exchange.protocol import split_pb2 as pb
from flwr_splitfc.exchange.protocol.ticket import Ticket
from tests.exchange.raw_device import RawDevice
from tests.exchange.server_halves import shared_half
from tests.exchange.step_frames import label_bytes, step_frame
from tests.halves import batches, seeded
from tests.local_grid import ticket_message

SGD = partial(torch.optim.SGD, lr=0.1)
ADAM = partial(torch.optim.Adam, lr=1e-2)
FEATURES = (4, 4, 4)


def normalised_half() -> nn.Module:
    return nn.Sequential(
        nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 4)
    )


def plain_half() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 4))


def leaky_half() -> nn.Module:
    """A half whose units do not die of large weights."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 16), nn.LeakyReLU(0.1), nn.Linear(16, 4)
    )


def repeated_half() -> nn.Module:
    """A half with one layer under two names."""
    layer = nn.Linear(64, 64)
    unit = nn.LeakyReLU(0.1)
    return nn.Sequential(nn.Flatten(), layer, unit, layer, unit, nn.Linear(64, 4))


def make_trainer(make=plain_half, optimizer=SGD, **options: Any) -> HalfTrainer:
    options = {"loss_fn": nn.CrossEntropyLoss(), "device": "cpu", **options}
    return HalfTrainer(seeded(make), optimizer=optimizer, **options)


def batch(scale: float = 1.0, rows: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    features = scale * torch.rand(rows, *FEATURES, generator=draw)
    return features, torch.randint(4, (rows,), generator=draw)


def all_of(trainer: HalfTrainer) -> dict[str, Any]:
    """All that a step changes, copied."""
    return deepcopy(
        {
            "model": dict(trainer.model.state_dict()),
            "optimizer": trainer.optimizer.state_dict(),
            "scheduler": trainer.scheduler and trainer.scheduler.state_dict(),
            "gradients": [parameter.grad for parameter in trainer.model.parameters()],
            "steps": trainer.steps,
            "updates": list(trainer.updates),
        }
    )


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


# -- numbers that run away -------------------------------------------------------------


def test_features_that_overflow_the_running_statistics_change_nothing():
    trainer = make_trainer(normalised_half)
    trainer.step(*batch())
    before = all_of(trainer)
    with pytest.raises(StepRefused, match="buffers"):
        trainer.step(*batch(1e25))
    assert equal(all_of(trainer), before)


def test_buffers_that_were_never_finite_are_left_alone():
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = plain_half()
            self.register_buffer("mask", torch.tensor([0.0, -torch.inf, 0.0, 0.0]))

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) + self.mask.clamp(min=-100.0)

    trainer = make_trainer(Masked)
    trainer.step(*batch())
    assert trainer.steps == 1


@pytest.mark.parametrize("optimizer", [SGD, ADAM], ids=["sgd", "adam"])
@pytest.mark.parametrize("make", [plain_half, leaky_half, normalised_half])
def test_no_scale_of_features_makes_the_next_steps_impossible(make, optimizer):
    for exponent in range(0, 39, 2):
        trainer = make_trainer(make, optimizer)
        trainer.step(*batch())
        before = all_of(trainer)
        try:
            trainer.step(*batch(10.0**exponent, seed=1))
        except StepRefused:
            assert equal(all_of(trainer), before), f"changed by 1e{exponent}"
        for seed in range(2, 5):
            trainer.step(*batch(seed=seed))
        for value in trainer.model.state_dict().values():
            assert value.isfinite().all(), f"1e{exponent}"


def test_honest_steps_go_on_after_a_device_that_raises_its_scale_step_by_step():
    trainer = make_trainer(leaky_half)
    trainer.step(*batch())
    refused = 0
    for exponent in range(0, 39):
        try:
            trainer.step(*batch(10.0**exponent, seed=exponent))
        except StepRefused:
            refused += 1
    assert refused
    for seed in range(2, 12):
        trainer.step(*batch(seed=seed))


@pytest.mark.parametrize("make", [leaky_half, repeated_half])
def test_a_refused_step_leaves_no_trace_in_the_steps_after_it(make):
    trainer, undisturbed = make_trainer(make), make_trainer(make)
    with pytest.raises(StepRefused, match="cannot be trained"):
        trainer.step(*batch(1e16))
    for seed in range(3):
        trainer.step(*batch(seed=seed))
        undisturbed.step(*batch(seed=seed))
    assert equal(all_of(trainer), all_of(undisturbed))


def test_honest_steps_towards_large_labels_are_made() -> None:
    """As of prices: outputs and their gradients grow with the labels, and are many."""

    def half() -> nn.Module:
        hidden = [nn.Linear(64, 64), nn.ReLU()]
        return nn.Sequential(nn.Flatten(), *hidden, *deepcopy(hidden), nn.Linear(64, 1))

    prices = partial(nn.functional.l1_loss)
    trainer = make_trainer(half, ADAM, loss_fn=prices)
    for seed in range(250):
        features, _ = batch(rows=256, seed=seed)
        labels = 2e6 * features.mean((1, 2, 3)).unsqueeze(1)
        trainer.step(features, labels)
    assert trainer.steps == 250


# -- errors that are none of ours ------------------------------------------------------


class Broken(torch.optim.SGD):
    """An optimizer that fails between two parameters, in its second step."""

    calls = 0

    def step(self, closure=None):
        self.calls += 1
        if self.calls == 2:
            first = self.param_groups[0]["params"][0]
            first.data.add_(1.0)
            self.state[first]["half"] = torch.ones(3)
            raise ArithmeticError("the optimizer fails")
        return super().step(closure)


class Meddling(torch.optim.Adam):
    """An optimizer that changes its settings and fails, in its second step.

    Its learning rate is a tensor, which is changed in place.
    """

    calls = 0

    def step(self, closure=None):
        super().step(closure)
        self.calls += 1
        if self.calls == 2:
            group = self.param_groups[0]
            group["lr"].mul_(2.0)
            group["betas"] = (0.1, 0.2)
            group["weight_decay"] = 1.0
            for state in self.state.values():
                state["step"] += 5
                state["exp_avg"].zero_()
            raise ArithmeticError("the optimizer fails")


class OutOfMemory(torch.autograd.Function):
    """Fails in the backward pass, as an allocation does."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        raise MemoryError("no memory for the backward pass")


class Remembers(nn.Module):
    """A half whose buffers grow, come and go with its forward passes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = plain_half()
        self.register_buffer("seen", torch.zeros(1))
        self.register_buffer("last", None)

    def forward(self, x: Tensor) -> Tensor:
        self.seen = torch.cat([self.seen, self.seen.new_ones(1)])
        self.last = x.detach().mean(0) if self.last is None else None
        out = self.inner(x)
        return OutOfMemory.apply(out) if len(self.seen) == 3 else out


class FailsOnce(nn.Module):
    """A half with running statistics whose second backward pass fails."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = normalised_half()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        out = self.inner(x)
        return OutOfMemory.apply(out) if self.calls == 2 else out


def meddling(parameters) -> Meddling:
    return Meddling(parameters, lr=torch.tensor(0.01))


FINISHED = partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=1)


@pytest.mark.parametrize(
    ("trainer", "why"),
    [
        (lambda: make_trainer(scheduler=FINISHED), "total steps is 1"),
        (lambda: make_trainer(optimizer=ADAM, scheduler=FINISHED), "total steps is 1"),
        (lambda: make_trainer(optimizer=partial(Broken, lr=0.1)), "optimizer fails"),
        (lambda: make_trainer(FailsOnce), "no memory"),
        (lambda: make_trainer(optimizer=meddling), "optimizer fails"),
        (lambda: make_trainer(Remembers), "no memory"),
    ],
    ids=[
        "scheduler-sgd",
        "scheduler-adam",
        "optimizer",
        "backward",
        "settings",
        "buffers",
    ],
)
def test_foreign_errors_refuse_the_step_and_change_nothing(trainer, why):
    trainer = trainer()
    trainer.step(*batch())
    before = all_of(trainer)
    with pytest.raises(StepRefused, match=why):
        trainer.step(*batch(seed=1))
    assert equal(all_of(trainer), before)


def test_a_failed_step_leaves_accumulated_gradients_as_they_were():
    trainer = make_trainer(optimizer=partial(Broken, lr=0.1), accumulate_steps=2)
    for seed in range(3):
        trainer.step(*batch(seed=seed))
    before = all_of(trainer)
    with pytest.raises(StepRefused):
        trainer.step(*batch(seed=3))
    assert equal(all_of(trainer), before)


def test_a_failed_backward_of_a_u_shaped_step_changes_nothing():
    trainer = make_trainer(normalised_half, scheduler=FINISHED)
    trainer.step(*batch())
    before = all_of(trainer)
    passed = trainer.forward(batch()[0])
    with pytest.raises(StepRefused, match="total steps"):
        trainer.backward(passed, torch.ones(8, 4))
    assert equal(all_of(trainer), before)


def test_a_pass_that_waits_outlives_the_failed_step_of_another_device():
    trainer = make_trainer(normalised_half, loss_fn=None)
    alone = make_trainer(normalised_half, loss_fn=None)
    gradient = torch.ones(8, 4)
    wanted = alone.backward(alone.forward(batch()[0]), gradient)
    waiting = trainer.forward(batch()[0])
    with pytest.raises(StepRefused):
        trainer.backward(trainer.forward(batch(1e25)[0]), gradient)
    assert torch.equal(trainer.backward(waiting, gradient), wanted)
    assert equal(all_of(trainer), all_of(alone))


# -- gradients that are accumulated ----------------------------------------------------

MOMENTUM = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
DECAY = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)


def accumulating(make=plain_half, optimizer=MOMENTUM) -> HalfTrainer:
    return make_trainer(
        make, optimizer, scheduler=DECAY, accumulate_steps=2, loss_fn=None
    )


def train(trainer: HalfTrainer, gradient: float, seed: int) -> None:
    passed = trainer.forward(batch(seed=seed)[0])
    trainer.backward(passed, torch.full((8, 4), gradient))


@pytest.mark.parametrize("optimizer", [SGD, MOMENTUM], ids=["sgd", "momentum"])
@pytest.mark.parametrize("make", [plain_half, normalised_half])
def test_a_gradient_that_no_step_can_be_made_with_counts_as_zero(
    make, optimizer, caplog
):
    trainer, wanted = accumulating(make, optimizer), accumulating(make, optimizer)
    for seed, (gradient, instead) in enumerate([(1.0, 1.0), (1.0, 1.0), (1e16, 0.0)]):
        train(trainer, gradient, seed)
        train(wanted, instead, seed)
    assert not caplog.messages
    for seed in range(3, 8):
        train(trainer, 1.0, seed)
        train(wanted, 1.0, seed)
    assert equal(all_of(trainer), all_of(wanted))
    assert [message for message in caplog.messages if "left out" in message]


def test_a_step_that_cannot_be_made_alone_leaves_those_before_it():
    trainer = accumulating()
    for seed in range(3):
        train(trainer, 1.0, seed)
    before = all_of(trainer)
    with pytest.raises(StepRefused, match="cannot be trained"):
        train(trainer, 1e16, seed=3)
    assert equal(all_of(trainer), before)
    train(trainer, 1.0, seed=4)


def test_a_step_after_its_answer_is_made_without_what_is_accumulated():
    trainer = make_trainer(accumulate_steps=2)
    trainer.begin_step(*batch(1e8))
    begun = trainer.begin_step(*batch(seed=1))
    begun.finish()
    assert trainer.steps == 2
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


# -- in a session ----------------------------------------------------------------------


def test_a_prediction_applies_a_begun_step_as_any_other_call_does():
    trainer = make_trainer()
    before = all_of(trainer)
    begun = trainer.begin_step(*batch(1e16))
    trainer.predict(batch()[0])
    with pytest.raises(StepRefused):
        begun.finish()
    assert equal(all_of(trainer), before)


def test_a_scheduler_that_is_through_ends_the_session_and_not_the_weights():
    halves = shared_half(optimizer=SGD, scheduler=FINISHED)
    x, y = batches(1)[0]
    features = torch.rand(len(x), *FEATURES, requires_grad=True)
    with SplitEndpoint(halves, cut_codec("float32")) as endpoint:
        with (
            pytest.raises(StepRefused, match="total steps"),
            connect(ticket_message(endpoint)) as session,
        ):
            session.loss(features, y)
            before = all_of(halves.half)
            session.loss(features, y)
        assert equal(all_of(halves.half), before)


def test_an_answer_that_cannot_be_made_is_not_made_twice(monkeypatch, caplog):
    """The step is applied, its gradient cannot be sent, and the frame comes again."""
    halves = shared_half()
    with SplitEndpoint(halves, cut_codec("float32")) as endpoint:
        message = ticket_message(endpoint, reconnect_timeout_s=1.0)
        turn = endpoint._registry.sessions()[0].turn

        def fails(*parts):
            raise KeyError("a fault of the server's")

        monkeypatch.setattr(turn, "_encode_gradients", fails)
        features = torch.rand(8, *FEATURES, requires_grad=True)
        with pytest.raises(SplitError, match="KeyError"), connect(message) as session:
            session.loss(features, torch.zeros(8, dtype=torch.long))
        assert halves.half.steps == 1
    assert "a fault of the server's" in caplog.text


def test_a_frame_that_failed_is_refused_when_it_comes_again():
    halves = shared_half(optimizer=SGD, scheduler=FINISHED)
    frame = step_frame(torch.rand(8, *FEATURES), label_bytes(8))
    with SplitEndpoint(halves, cut_codec("float32")) as endpoint:
        ticket = Ticket.from_message(ticket_message(endpoint))
        device = RawDevice(endpoint, ticket)
        frame.number = 1
        assert device.ask(frame).WhichOneof("kind") == "stepped"
        before = all_of(halves.half)
        frame.number = 2
        # the scheduler fails when the device has its gradient
        assert device.ask(frame).WhichOneof("kind") == "stepped"
        for _ in range(3):
            device.drop()
            device = RawDevice(endpoint, ticket)
            assert device.opened.refused.reason == pb.STEP
        assert equal(all_of(halves.half), before)
