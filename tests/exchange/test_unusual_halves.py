"""Server halves, optimizers and losses that few have, beside the same training unsplit."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from flwr.app import ArrayRecord
from torch import Tensor, fx, nn
from torch.nn.utils import clip_grad_norm_
from torch.utils.checkpoint import checkpoint

from flwr_splitfc import JoinedModel, SplitClientApp, SplitFedV1, SplitLearning
from flwr_splitfc.exchange import CopiedHalves, HalfTrainer
from flwr_splitfc.exchange.protocol.split_errors import (
    FeaturesRefused,
    LabelsRefused,
    StepRefused,
)
from tests.halves import DeviceHalf, ServerHalf, batches, same, seeded, weights
from tests.local_grid import LocalGrid

SGD = partial(torch.optim.SGD, lr=0.1)
ADAM = partial(torch.optim.Adam, lr=1e-2)
LOSS = nn.CrossEntropyLoss()
FEATURES = 6
STEPS = 4


class Delta(nn.Module):
    """The gradients by its two summands are one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, FEATURES))
        self.delta = nn.Parameter(torch.zeros(4, FEATURES))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight + self.delta).T


class Shifted(nn.Module):
    """Writes into its features."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.ones(FEATURES))
        self.layer = nn.Linear(FEATURES, 4)

    def forward(self, x: Tensor) -> Tensor:
        x += self.shift
        return self.layer(x)


def inplace() -> nn.Module:
    return nn.Sequential(nn.ReLU(inplace=True), nn.Linear(FEATURES, 4))


def made(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make()


def mini_batches() -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(8, FEATURES, generator=draw),
            torch.randint(4, (8,), generator=draw),
        )
        for _ in range(STEPS)
    ]


def unsplit(model: nn.Module, optimizer: Any, max_grad_norm: float | None) -> nn.Module:
    steps = optimizer(model.parameters())
    for x, y in mini_batches():
        steps.zero_grad()
        LOSS(model(x.clone()), y).backward()
        if max_grad_norm is not None:
            clip_grad_norm_(model.parameters(), max_grad_norm)
        steps.step()
    return model


@pytest.mark.parametrize("make", [Delta, Shifted, inplace])
@pytest.mark.parametrize(
    "optimizer",
    [ADAM, partial(SGD, momentum=0.9, nesterov=True, foreach=True)],
    ids=["adam", "nesterov"],
)
@pytest.mark.parametrize("max_grad_norm", [None, 0.1])
def test_training_is_that_of_the_half_alone(
    make: Callable[[], nn.Module], optimizer: Any, max_grad_norm: float | None
) -> None:
    wanted = weights(unsplit(made(make), optimizer, max_grad_norm))
    half = HalfTrainer(
        made(make), LOSS, optimizer, max_grad_norm=max_grad_norm, device="cpu"
    )
    for x, y in mini_batches():
        half.step(x, y)
    assert same(weights(half.model), wanted)


@pytest.mark.parametrize("other_step", [False, True])
def test_a_pass_that_is_made_again_has_the_features_of_the_first(
    other_step: bool,
) -> None:
    """A frozen first half wants no gradient, and its features may be written into."""
    half = HalfTrainer(made(Shifted), None, SGD, device="cpu")
    (x, _), (other, _), *_ = mini_batches()
    passed = half.forward(x, wanted=[False])
    if other_step:
        between = half.forward(other, wanted=[False])
        half.begin_backward(between, torch.zeros(8, 4)).finish()
    half.begin_backward(passed, torch.ones(8, 4)).finish()
    wanted = made(Shifted)
    wanted(mini_batches()[0][0]).backward(torch.ones(8, 4))
    SGD(wanted.parameters()).step()
    assert same(weights(half.model), weights(wanted))


# -- lists and dicts that a half changes -----------------------------------------------


class Changing(nn.Module):
    """Changes the structure that it gets by a function, and adds up what it gives."""

    def __init__(self, change: Callable[[Any], list[Tensor]]) -> None:
        super().__init__()
        self.change = change
        self.layer = nn.Linear(FEATURES, 4)

    def forward(self, parts: Any) -> Tensor:
        first, second = self.change(parts)
        return self.layer(first + 3 * second)


def put_in(parts: dict[str, Tensor]) -> list[Tensor]:
    parts["a"] = parts["a"].tanh()
    return [parts["a"], parts["b"]]


def update(parts: dict[str, Tensor]) -> list[Tensor]:
    parts.update(a=parts["a"].tanh())
    return [parts["a"], parts["b"]]


def take_out(parts: dict[str, Tensor]) -> list[Tensor]:
    return [parts.pop("b"), parts.pop("a")]


def write_into_what_is_taken_out(parts: dict[str, Tensor]) -> list[Tensor]:
    return [parts.pop("b").mul_(2), parts["a"]]


def pop(parts: list[Tensor]) -> list[Tensor]:
    return [parts.pop(), parts.pop()]


def reverse(parts: list[Tensor]) -> list[Tensor]:
    parts.reverse()
    return parts


IN_DICTS = [put_in, update, take_out, write_into_what_is_taken_out]
IN_LISTS = [pop, reverse]


def two_parts(x: Tensor, change: Callable[[Any], list[Tensor]]) -> Any:
    parts = {"a": x.clone(), "b": 1 - x}
    return parts if change in IN_DICTS else list(parts.values())


@pytest.mark.parametrize("change", IN_DICTS + IN_LISTS)
@pytest.mark.parametrize("replay_steps", [0, 1])
def test_a_half_may_change_the_structure_that_it_gets(
    change: Callable[[Any], list[Tensor]], replay_steps: int
) -> None:
    def unchanged(parts: Any) -> list[Tensor]:
        return change(type(parts)(parts))

    def trained(change_of_half: Callable[[Any], list[Tensor]]) -> list[Any]:
        model = made(partial(Changing, change_of_half))
        half = HalfTrainer(model, LOSS, SGD, device="cpu", replay_steps=replay_steps)
        gradients = []
        for x, y in mini_batches():
            begun = half.begin_step(two_parts(x, change), y)
            gradients += begun.gradients
        return [*gradients, *half.model.parameters()]

    for found, wanted in zip(trained(change), trained(unchanged), strict=True):
        assert found.equal(wanted)


@pytest.mark.parametrize("change", IN_DICTS + IN_LISTS)
def test_a_half_between_two_of_a_device_may_change_its_structure(
    change: Callable[[Any], list[Tensor]],
) -> None:
    half = HalfTrainer(made(partial(Changing, change)), None, SGD, device="cpu")
    wanted = made(partial(Changing, change))
    optimizer = SGD(wanted.parameters())
    for x, _ in mini_batches():
        passed = half.forward(two_parts(x, change))
        begun = half.begin_backward(passed, torch.ones(8, 4))
        leaf = x.clone().requires_grad_()
        optimizer.zero_grad()
        wanted(two_parts(leaf, change)).backward(torch.ones(8, 4))
        optimizer.step()
        by_a, by_b = begun.gradients
        torch.testing.assert_close(by_a - by_b, leaf.grad)
    assert same(weights(half.model), weights(wanted))


class Padded(nn.Module):
    """Writes into its features where there is a padding, and drops out some."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(FEATURES)
        self.layer = nn.Sequential(nn.Dropout(), nn.Linear(FEATURES, 4))

    def forward(self, parts: dict[str, Tensor]) -> Tensor:
        hidden, padding = parts["hidden"], parts["padding"]
        normed = self.norm(1 - hidden)
        if padding.any():
            hidden[padding] = 0.0
        return self.layer(normed + hidden)


class PaddedByCopies(Padded):
    def forward(self, parts: dict[str, Tensor]) -> Tensor:
        return super().forward({**parts, "hidden": parts["hidden"].clone()})


def test_a_half_may_write_into_features_of_later_batches_alone() -> None:
    halves = [
        HalfTrainer(made(make), LOSS, SGD, device="cpu")
        for make in (Padded, PaddedByCopies)
    ]
    for number, (x, y) in enumerate(mini_batches()):
        padding = torch.arange(8) < number
        losses = []
        for half in halves:
            loss, _ = half.step({"hidden": x.clone(), "padding": padding}, y)
            losses.append(loss)
        assert losses[0] == losses[1]
    late, copied = halves
    assert same(weights(late.model), weights(copied.model))


# -- weights that grow -----------------------------------------------------------------


class Named(NamedTuple):
    logits: Tensor


class GivesNamed(nn.Linear):
    def forward(self, x: Tensor) -> Any:
        return Named(super().forward(x))


class GivesNormal(nn.Linear):
    def forward(self, x: Tensor) -> Any:
        return torch.distributions.Normal(super().forward(x), 1.0)


class Acosh(nn.Linear):
    """It has numbers above 1 alone, and a step is tried with smaller ones."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x.abs() + 1).clamp(min=1.5).acosh() + (x - 9).acosh())


GROWING = {
    "named": (GivesNamed, lambda out, y: -out.logits.sum()),
    "normal": (GivesNormal, lambda out, y: -out.mean.sum()),
    "acosh": (Acosh, lambda out, y: -out.sum()),
}


@pytest.mark.parametrize("name", GROWING)
def test_a_half_that_the_probe_cannot_try_trains_on(name: str) -> None:
    make, loss_fn = GROWING[name]
    half = HalfTrainer(make(FEATURES, 4), loss_fn, SGD, device="cpu")
    for x, y in 3 * mini_batches():
        half.step(x.abs() + 11, y)
    assert half.steps == 3 * STEPS


# -- sparse gradients, and buffers of all kinds ----------------------------------------


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 4, sparse=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.table(x.abs().long().clamp(max=9)).mean(1)


@pytest.mark.parametrize(
    "optimizer",
    [torch.optim.SparseAdam, partial(SGD, momentum=0.9), torch.optim.Adagrad],
)
def test_sparse_gradients_go_on_after_a_restart(optimizer: Any) -> None:
    whole = HalfTrainer(made(Words), LOSS, optimizer, device="cpu", accumulate_steps=1)
    first = HalfTrainer(made(Words), LOSS, optimizer, device="cpu")
    for number, (x, y) in enumerate(mini_batches()):
        whole.step(x, y)
        if number == STEPS // 2:
            state = deepcopy(first.state_dict())
            first = HalfTrainer(made(Words), LOSS, optimizer, device="cpu")
            first.load_state_dict(state)
        first.step(x, y)
    assert same(weights(first.model), weights(whole.model))


class WithBuffers(nn.Linear):
    def __init__(self) -> None:
        super().__init__(FEATURES, 4)
        self.register_buffer("empty", torch.zeros(0))
        self.register_buffer("cache", torch.zeros(3))
        self.register_buffer("sparse", torch.eye(3).to_sparse())

    def forward(self, x: Tensor) -> Tensor:
        self.cache = None
        return super().forward(x)


def test_buffers_may_be_empty_or_sparse_or_go_away() -> None:
    half = HalfTrainer(WithBuffers(), LOSS, SGD, device="cpu")
    for x, y in mini_batches():
        half.step(x, y)
    assert half.steps == STEPS


class Bounded(nn.Module):
    """Its table's rows are scaled down in the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 4, max_norm=0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.table(x.abs().long().clamp(max=9)).mean(1)


def test_a_step_that_is_refused_leaves_a_bounded_table_as_it_was() -> None:
    half = HalfTrainer(made(Bounded), LOSS, SGD, device="cpu")
    before = weights(half.model)
    (x, y), *_ = mini_batches()
    with pytest.raises(LabelsRefused):
        half.step(x, y + 99)
    assert same(weights(half.model), before)
    half.step(x, y)
    assert not same(weights(half.model), before)


# -- what cannot be trained as it is meant ---------------------------------------------


class WeightedLoss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return LOSS(outputs, labels) * self.log_scale.exp() - self.log_scale


def test_what_would_never_be_trained_is_refused() -> None:
    model = nn.Linear(FEATURES, 4)
    with pytest.raises(ValueError, match="log_scale"):
        HalfTrainer(model, WeightedLoss(), SGD, device="cpu")
    others = nn.Linear(FEATURES, 4)
    with pytest.raises(ValueError, match="not of the model"):
        HalfTrainer(model, LOSS, lambda _: SGD(others.parameters()), device="cpu")
    with pytest.raises(ValueError, match="LBFGS"):
        HalfTrainer(model, LOSS, torch.optim.LBFGS, device="cpu")
    with pytest.raises(ValueError, match="ReduceLROnPlateau"):
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau
        HalfTrainer(model, LOSS, SGD, scheduler=plateau, device="cpu")
    norm = nn.InstanceNorm1d(3, track_running_stats=True)
    with pytest.raises(ValueError, match="running statistics"):
        HalfTrainer(norm, LOSS, SGD, merge_steps=2, device="cpu")


@pytest.mark.parametrize(
    ("of_loss", "message"),
    [
        (
            lambda loss: (loss, {"accuracy": 1.0}),
            "gave a tuple, wanted a scalar tensor",
        ),
        (lambda loss: {"loss": loss}, "gave a dict, wanted a scalar tensor"),
        (lambda loss: loss.item(), "gave a float, wanted a scalar tensor"),
        (lambda loss: None, "gave a NoneType, wanted a scalar tensor"),
        (lambda loss: loss.detach(), "gave a loss without a graph"),
        (lambda loss: loss.long(), "gave a loss without a graph"),
    ],
)
def test_a_loss_that_nothing_could_be_learned_from_is_refused(
    of_loss: Callable[[Tensor], Any], message: str
) -> None:
    def loss_fn(outputs: Tensor, labels: Tensor) -> Any:
        return of_loss(LOSS(outputs, labels))

    half = HalfTrainer(made(inplace), loss_fn, SGD, device="cpu")
    before = weights(half.model)
    with pytest.raises(StepRefused, match=f"loss_fn {message}"):
        half.step(*mini_batches()[0])
    assert same(weights(half.model), before)


class Reentrant(nn.Module):
    """Computes its pass again when it goes back, in the older way of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.ReLU(), nn.Linear(FEATURES, 4))

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.layers, x, use_reentrant=True)


# features of a device half that is within such a checkpoint want no gradient
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (True, "use_reentrant=True, torch.utils.checkpoint is incompatible with .grad"),
        (False, "checkpoints with use_reentrant=True in both halves"),
    ],
)
def test_a_reentrant_checkpoint_is_refused_by_its_name(
    wanted: bool, message: str
) -> None:
    half = HalfTrainer(made(Reentrant), LOSS, SGD, device="cpu")
    before = weights(half.model)
    with pytest.raises(StepRefused, match=message):
        half.begin_step(*mini_batches()[0], wanted=[wanted]).finish()
    assert same(weights(half.model), before)


@pytest.mark.gpu
def test_the_tensors_of_a_loss_follow_the_half() -> None:
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5, 1.0]))
    losses = []
    for device in ("cpu", "cuda"):
        half = HalfTrainer(made(inplace), loss, SGD, device=device)
        losses.append([half.step(x, y)[0] for x, y in mini_batches()])
    torch.testing.assert_close(losses[1], losses[0])
    assert loss.weight.device.type == "cpu"


def test_an_optimizer_of_the_original_is_refused_before_the_first_copy() -> None:
    model = seeded(ServerHalf)
    with pytest.raises(ValueError, match="not of the model"):
        SplitLearning(
            model,
            LOSS,
            lambda _: SGD(model.parameters()),
            shared_server_half=False,
            device="cpu",
        )


# -- copies ----------------------------------------------------------------------------


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wave = nn.Parameter(torch.randn(FEATURES, 4, dtype=torch.complex64))
        third = torch.full((4,), 1 / 3, dtype=torch.float64)
        self.frozen = nn.Parameter(third, requires_grad=False)
        self.register_buffer("key", torch.tensor(2**53 + 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x.to(torch.complex64) @ self.wave).abs() + self.frozen.float()


def test_copies_are_averaged_whatever_their_numbers_are() -> None:
    halves = CopiedHalves(HalfTrainer(made(Mixed), LOSS, SGD, device="cpu"))
    copies = [halves.take(device, 1) for device in ("0", "1", "2")]
    for copy, (x, y) in zip(copies, mini_batches(), strict=False):
        copy.step(x, y)
        halves.give_back(copy, 8)
    mean = torch.stack([weights(copy.model)["wave"] for copy in copies]).mean(0)
    halves.end_round()
    after = halves.half.model
    torch.testing.assert_close(weights(after)["wave"], mean)
    assert after.frozen.equal(made(Mixed).frozen)
    assert int(after.key) == 2**53 + 1


def test_copies_of_a_compiled_half_are_averaged() -> None:
    """One that was traced loses its compilation, and with it the prefix of its names."""
    compiled: Any = torch.compile(fx.symbolic_trace(made(inplace)))
    halves = CopiedHalves(HalfTrainer(compiled, LOSS, SGD, device="cpu"))
    copies = [halves.take(device, 1) for device in ("0", "1")]
    for copy, (x, y) in zip(copies, mini_batches(), strict=False):
        copy.step(x, y)
        halves.give_back(copy, 8)
    halves.end_round()
    found = [half.model.state_dict().values() for half in (halves.half, *copies)]
    for mean, *values in zip(*found, strict=True):
        torch.testing.assert_close(mean, torch.stack(values).mean(0))


def test_a_half_that_cannot_be_copied_is_refused_when_the_strategy_is_made() -> None:
    with pytest.warns(FutureWarning):
        half = nn.utils.weight_norm(nn.Linear(FEATURES, 4))
    SplitLearning(half, LOSS, SGD, device="cpu")
    with pytest.raises(ValueError, match="that of its parametrizations can"):
        SplitFedV1(half, LOSS, SGD, device="cpu")
    parametrised = nn.utils.parametrizations.weight_norm(nn.Linear(FEATURES, 4))
    SplitFedV1(parametrised, LOSS, SGD, device="cpu")


class Caching(nn.Linear):
    """Its caches grow with the batch, and one is there from the first pass on alone."""

    def __init__(self) -> None:
        super().__init__(FEATURES, 4)
        self.register_buffer("cache", torch.zeros(1))
        self.register_buffer("late", None)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > len(self.cache):
            self.cache = torch.ones(len(x))
        self.late = torch.ones(2)
        self.count = self.count + 1
        return super().forward(x)


def test_copies_are_averaged_but_for_buffers_whose_shape_changes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    halves = CopiedHalves(HalfTrainer(made(Caching), LOSS, SGD, device="cpu"))
    # of one row, it does not grow
    for server_round, lengths in enumerate([(1, 8), (5, 8)], start=1):
        copies = [halves.take(device, server_round) for device in ("0", "1")]
        for copy, rows, (x, y) in zip(copies, lengths, mini_batches(), strict=False):
            copy.step(x[:rows], y[:rows])
            halves.give_back(copy, 8)
        halves.end_round()
        for name in ("weight", "count"):
            mean = torch.stack([weights(copy.model)[name] for copy in copies]).mean(0)
            torch.testing.assert_close(weights(halves.half.model)[name], mean)
        assert halves.half.model.cache.equal(torch.zeros(1))
    assert caplog.text.count("'cache' of the server half stays as it is") == 1


class WithExtraState(nn.Linear):
    """Keeps a dict beside its weights, in which there is a tensor."""

    def __init__(self) -> None:
        super().__init__(64, 4)
        self.extra: Any = {"version": 1, "scale": torch.ones(2)}

    def get_extra_state(self) -> Any:
        return self.extra

    def set_extra_state(self, state: Any) -> None:
        self.extra = state


@pytest.mark.parametrize("kind", [SplitLearning, SplitFedV1])
def test_a_half_may_keep_what_is_no_tensor(kind: Any, tmp_path: Path) -> None:
    server_half = nn.Sequential(nn.Flatten(), WithExtraState())
    app = SplitClientApp(DeviceHalf, lambda context: (batches(2), batches(1)), ADAM)
    arrays = ArrayRecord(seeded(DeviceHalf).state_dict())
    for rounds in (1, 2):  # the second run goes on from the first
        strategy = kind(
            deepcopy(server_half),
            LOSS,
            ADAM,
            device="cpu",
            checkpoint=tmp_path / "goes-on",
        )
        result = strategy.start(LocalGrid(app, 2, workers=0), arrays, rounds)
        assert strategy.ledger.failures(rounds) == {}
    strategy.save(tmp_path, result.arrays)
    server_half[-1].extra = None
    joined = JoinedModel(DeviceHalf(), server_half)
    joined.load_state_dict(torch.load(tmp_path / "joined.pt", weights_only=True))
    assert server_half[-1].extra["version"] == 1


def test_copies_that_never_step_are_warned_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    half = HalfTrainer(made(inplace), LOSS, SGD, accumulate_steps=2, device="cpu")
    halves = CopiedHalves(half)

    def turn(steps: int) -> None:
        copy = halves.take("0", 1)
        for x, y in mini_batches()[:steps]:
            copy.step(x, y)
        halves.give_back(copy, 8)

    for turns in ((1, 2), (2,), ()):
        for steps in turns:
            turn(steps)
        halves.end_round()
    assert "learns nothing" not in caplog.text
    for _ in range(2):
        turn(1)
        halves.end_round()
    assert caplog.text.count("The server half learns nothing") == 1


def test_a_half_of_float64_says_how_it_takes_features() -> None:
    half = HalfTrainer(nn.Linear(FEATURES, 4).double(), LOSS, SGD, device="cpu")
    (x, y), *_ = mini_batches()
    advice = r"features arrive as float32: features.to\(torch.float64\)"
    with pytest.raises(FeaturesRefused, match=advice):
        half.step(x, y)
    with pytest.raises(FeaturesRefused, match=advice):
        half.predict(x)
    half = HalfTrainer(nn.Linear(FEATURES, 4), LOSS, SGD, device="cpu")
    with pytest.raises(FeaturesRefused) as refused:
        half.step(x[:, 1:], y)
    assert "float32" not in str(refused.value)


# -- devices ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "optimizer", [torch.optim.Adafactor, partial(torch.optim.NAdam, lr=1e-2)]
)
def test_state_is_relayed_whoever_the_next_device_is(optimizer: Any) -> None:
    """All devices have the same batches, so it is the same which of them has its turn."""

    def trained(devices: int) -> dict[str, Tensor]:
        app = SplitClientApp(
            DeviceHalf, lambda context: (batches(2), batches(1)), optimizer
        )
        strategy = SplitLearning(seeded(ServerHalf), LOSS, ADAM, device="cpu")
        arrays = ArrayRecord(seeded(DeviceHalf).state_dict())
        result = strategy.start(LocalGrid(app, devices, workers=0), arrays, 3)
        failures = [strategy.ledger.failures(number) for number in (1, 2, 3)]
        assert failures == [{}, {}, {}]
        return result.arrays.to_torch_state_dict()

    assert same(trained(devices=3), trained(devices=2))


# -- an optimizer of a part ------------------------------------------------------------


def two_layers() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 5), nn.Tanh(), nn.Linear(5, 4))


def last_layer(parameters: Any) -> torch.optim.Optimizer:
    return SGD(list(parameters)[2:])


@pytest.mark.parametrize("accumulate_steps", [1, 2])
def test_a_clip_is_of_the_weights_that_the_optimizer_steps(
    accumulate_steps: int,
) -> None:
    alone = made(two_layers)
    optimizer = last_layer(alone.parameters())
    for number, (x, y) in enumerate(mini_batches(), start=1):
        (LOSS(alone(x), y) / accumulate_steps).backward()
        if number % accumulate_steps == 0:
            clip_grad_norm_(alone[2].parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad()
    half = HalfTrainer(
        made(two_layers),
        LOSS,
        last_layer,
        max_grad_norm=0.1,
        accumulate_steps=accumulate_steps,
        device="cpu",
    )
    for x, y in mini_batches():
        half.step(x, y)
    wanted = weights(alone)
    for name, value in weights(half.model).items():
        torch.testing.assert_close(value, wanted[name])


def test_weights_that_join_the_optimizer_later_start_without_a_gradient() -> None:
    half = HalfTrainer(made(two_layers), LOSS, last_layer, device="cpu")
    (x, y), (next_x, next_y), *_ = mini_batches()
    half.step(x, y)
    first = half.model[0].weight
    half.optimizer.add_param_group({"params": [first]})
    alone = deepcopy(half.model)
    LOSS(alone(next_x), next_y).backward()
    half.step(next_x, next_y)
    torch.testing.assert_close(first, alone[0].weight - 0.1 * alone[0].weight.grad)


def test_a_checkpoint_with_gradients_of_weights_that_are_not_stepped_is_taken() -> None:
    """Earlier versions kept them."""
    half = HalfTrainer(
        made(two_layers), LOSS, last_layer, max_grad_norm=0.1, device="cpu"
    )
    (x, y), (other_x, other_y), *_ = mini_batches()
    half.step(x, y)
    state = deepcopy(half.state_dict())
    half.step(other_x, other_y)
    state["gradients"][0] = torch.full((5, FEATURES), 1e3)
    again = HalfTrainer(
        made(two_layers), LOSS, last_layer, max_grad_norm=0.1, device="cpu"
    )
    again.load_state_dict(state)
    again.step(other_x, other_y)
    assert same(weights(again.model), weights(half.model))


# -- losses that reach into the half ---------------------------------------------------


class Balanced(nn.Linear):
    """Returns a penalty in training if asked to."""

    def __init__(self, *, returns: bool = False) -> None:
        super().__init__(FEATURES, 4)
        self.returns = returns

    def forward(self, x: Tensor) -> Any:
        output = super().forward(x)
        if self.returns and self.training:
            return output, output.square().mean()
        return output

    def plain(self, output: Tensor, y: Tensor) -> Tensor:
        return LOSS(output, y.long())


class Task:
    """Holds a half beside its losses."""

    def __init__(self, half: Balanced) -> None:
        self.halves = [half]
        self.criterion = LOSS

    def plain(self, output: Tensor, y: Tensor) -> Tensor:
        return self.criterion(output, y)

    def penalised(self, output: Tensor, y: Tensor) -> Tensor:
        return self.plain(output, y) + self.of_weights()

    def of_weights(self) -> Tensor:
        return self.halves[0].weight.square().sum()

    __call__ = penalised


def with_weights(output: Tensor, y: Tensor, parameters: list[Tensor]) -> Tensor:
    return LOSS(output, y) + sum(p.square().sum() for p in parameters)


def closure_over(half: Balanced) -> Any:
    def of_weights() -> Tensor:
        return sum(p.square().sum() for p in half.parameters())

    return lambda output, y: LOSS(output, y) + of_weights()


REACHING: list[Any] = [
    closure_over,
    lambda half: lambda output, y, own=half.weight: LOSS(output, y) + own.sum(),
    lambda half: partial(with_weights, parameters=list(half.parameters())),
    lambda half: Task(half).penalised,
    Task,
]
APART: list[Any] = [
    lambda half: LOSS,
    lambda half: partial(nn.functional.cross_entropy, label_smoothing=0.1),
    lambda half: lambda output, y: LOSS(output, y),
    lambda half: Task(half).plain,
    lambda half: closure_over(Balanced()),
    lambda half: half.plain,
]


@pytest.mark.parametrize("loss_of", REACHING)
def test_a_loss_that_reaches_into_the_half_is_refused_for_copies(loss_of: Any) -> None:
    model = made(Balanced)
    half = HalfTrainer(model, loss_of(model), SGD, device="cpu")
    copy = half.copy(seed=0)
    before = weights(copy.model)
    x, y = mini_batches()[0]
    for _ in range(2):
        with pytest.raises(StepRefused, match="loss_fn goes by the weights of the or"):
            copy.step(x, y)
    assert same(weights(copy.model), before)
    half.step(x, y)


@pytest.mark.parametrize("loss_of", APART)
def test_a_loss_that_does_not_trains_copies(loss_of: Any) -> None:
    model = made(Balanced)
    copy = HalfTrainer(model, loss_of(model), SGD, device="cpu").copy(seed=0)
    for x, y in mini_batches():
        copy.step(x, y)
    assert not same(weights(copy.model), weights(model))


def test_a_copy_trains_with_a_penalty_that_it_returns() -> None:
    def loss(output: Any, y: Tensor) -> Tensor:
        logits, penalty = output
        return LOSS(logits, y) + penalty

    alone = made(partial(Balanced, returns=True))
    half = HalfTrainer(deepcopy(alone), loss, SGD, device="cpu")
    optimizer = SGD(alone.parameters())
    copy = half.copy(seed=0)
    for x, y in mini_batches():
        optimizer.zero_grad()
        loss(alone(x), y).backward()
        optimizer.step()
        copy.step(x, y)
    assert same(weights(copy.model), weights(alone))
    assert copy.predict(x).shape == (8, 4)
