"""Halves do what the model does, or the cut is refused: shared layers, hooks, training mode, changes in place."""

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import MethodType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from flwr_splitfc import HeadAndTail, JoinedModel, split_at


def check_same(model: nn.Module, layer: str | int, **options: Any) -> list[nn.Module]:
    """Both halves do what the model does, in both modes, and have its entries."""
    x = torch.randn(8, 4)
    halves = split_at(model, layer, **options)
    joined = JoinedModel(*halves)
    for mode in (True, False):
        model.train(mode)
        joined.train(mode)
        torch.manual_seed(0)
        wanted = model(x)
        torch.manual_seed(0)
        assert torch.equal(joined(x), wanted)
    device, server = (half.state_dict() for half in halves)
    assert {**device, **server}.keys() == model.state_dict().keys()
    return list(halves)


# -- a Sequential that has a layer more than once


def with_one_activation() -> nn.Sequential:
    act = nn.Tanh()
    first, second, third = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
    return nn.Sequential(first, act, second, act, third)


@pytest.mark.parametrize(
    ("layer", "device_layers"), [(0, 1), (1, 2), ("2", 3), (3, 4), ("3", 4), (-2, 4)]
)
def test_a_layer_without_parameters_is_in_a_sequential_as_often_as_it_stands_there(
    layer: int | str, device_layers: int
) -> None:
    device, server = check_same(with_one_activation(), layer)
    assert [name for name, _ in device.named_modules(remove_duplicate=False)][1:] == [
        str(place) for place in range(device_layers)
    ]
    assert len(server) == 5 - device_layers


def test_a_call_of_a_layer_in_a_sequential_may_be_named() -> None:
    device, server = split_at(with_one_activation(), "1_0")
    assert {name.split(".")[0] for name in device.state_dict()} == {"0"}
    assert {name.split(".")[0] for name in server.state_dict()} == {"2", "4"}


def twice(layer: nn.Module) -> nn.Sequential:
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(4, 4), nn.Linear(4, 2))


def test_a_half_has_a_trained_layer_twice() -> None:
    device, _ = check_same(twice(nn.Linear(4, 4)), 3)
    assert list(device.state_dict())[:4] == ["0.weight", "0.bias", "2.weight", "2.bias"]


@pytest.mark.parametrize(
    "layer", [nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False)], ids=["linear", "norm"]
)
def test_a_layer_that_trains_or_counts_is_not_on_both_sides(layer: nn.Module) -> None:
    with pytest.raises(ValueError, match="'1': 2 is a layer of the device half, too"):
        split_at(twice(layer), 1)


# -- what a Sequential does beside its layers


class Scaled(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Residual(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def layers(outputs: int = 2) -> list[nn.Module]:
    return [nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, outputs)]


@pytest.mark.parametrize("layer", [0, "1"])
def test_a_forward_of_its_own_is_kept(layer: int | str) -> None:
    check_same(Scaled(*layers()), layer)


def test_a_forward_of_its_own_may_need_more_at_the_cut() -> None:
    model = Residual(*layers(4))
    with pytest.raises(ValueError, match=r"also needs x.*input x is the device's own"):
        split_at(model, 1)
    check_same(model, 1, also=("x",))


@pytest.mark.parametrize("kind", [nn.Sequential, Scaled])
def test_a_forward_of_one_model_is_kept(kind: type[nn.Sequential]) -> None:
    model = kind(*layers())
    model.forward = MethodType(lambda self, x: self[2](self[0](x)) + 1, model)
    check_same(model, 0)


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(*layers(4))
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(x))


def tripled(*given: Any) -> Any:
    """Three times the last of a hook's arguments: inputs, outputs, or gradients."""
    last = given[-1]
    return (3 * last[0],) if isinstance(last, tuple) else 3 * last


BACKWARD_HOOKS = ["register_full_backward_pre_hook", "register_full_backward_hook"]
FORWARD_HOOKS = ["register_forward_pre_hook", "register_forward_hook"]


@pytest.mark.parametrize("kind", [*FORWARD_HOOKS, *BACKWARD_HOOKS])
@pytest.mark.parametrize(
    ("model", "layer"), [(nn.Sequential(*layers()), 0), (Nested(), "inner")]
)
def test_hooks_of_the_model_itself_are_refused(
    model: nn.Module, layer: int | str, kind: str
) -> None:
    hook = getattr(model, kind)(tripled)
    with pytest.raises(ValueError, match="would have the hooks of the model itself"):
        split_at(model, layer)
    hook.remove()
    check_same(model, layer)


@pytest.mark.parametrize("kind", FORWARD_HOOKS)
def test_forward_hooks_of_layers_and_of_what_holds_them_are_kept(kind: str) -> None:
    model = Nested()
    for module in (model.inner, model.inner[0], model.last):
        getattr(module, kind)(tripled)
    check_same(model, "inner.0")


@pytest.mark.parametrize("kind", BACKWARD_HOOKS)
def test_backward_hooks_of_what_holds_the_layer_are_refused(kind: str) -> None:
    model = Nested()
    getattr(model.inner, kind)(tripled)
    with pytest.raises(ValueError, match="the hooks of inner: remove them"):
        split_at(model, "inner.0")
    check_same(model, "inner")


# -- the training mode


class Moded(nn.Module):
    """Two layers; its kinds do something between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 2)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(self.first(x)))

    def between(self, h: Tensor) -> Tensor:
        raise NotImplementedError


class Attention(Moded):
    def between(self, h: Tensor) -> Tensor:
        h = h.unsqueeze(1)
        p = 0.5 if self.training else 0.0
        h = functional.scaled_dot_product_attention(h, h, h, dropout_p=p)
        return h.squeeze(1)


class Noise(Moded):
    def between(self, h: Tensor) -> Tensor:
        return h + torch.randn_like(h) if self.training else h


class OnlyInEvaluation(Moded):
    def between(self, h: Tensor) -> Tensor:
        return h if self.training else h.tanh()


class Constant(Moded):
    def between(self, h: Tensor) -> Tensor:
        return h * torch.tensor(2.0 if self.training else 1.0)


class Number(Moded):
    def between(self, h: Tensor) -> Tensor:
        return h.clamp(min=True if self.training else 1)


class AlphaDropout(Moded):
    def between(self, h: Tensor) -> Tensor:
        return functional.alpha_dropout(h, 0.5, self.training)


class Norm(Moded):
    def between(self, h: Tensor) -> Tensor:
        return functional.batch_norm(h, None, None, None, None, self.training)


class OfALayer(Moded):
    def between(self, h: Tensor) -> Tensor:
        return functional.dropout(h, self.drop.p, self.drop.training)


class InOneModeAlone(Moded):
    def between(self, h: Tensor) -> Tensor:
        if not self.training:
            raise RuntimeError("only for training")
        return h


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Attention, "scaled_dot_product_attention is not the same in training and in"),
        (Noise, "randn_like is not the same"),
        (OnlyInEvaluation, "tanh is not the same"),
        (Constant, "_tensor_constant0 is not the same"),
        (Number, "clamp is not the same"),
        (AlphaDropout, "alpha_dropout is not the same"),
        (Norm, "batch_norm is not the same"),
        (OfALayer, "dropout is not the same"),
        (InOneModeAlone, "cannot trace it .only for training"),
    ],
)
def test_what_depends_on_the_mode_is_refused(
    kind: type[Moded], message: str, mode: bool
) -> None:
    with pytest.raises(ValueError, match=message):
        split_at(kind().train(mode), "first")


class InLayers(Moded):
    def between(self, h: Tensor) -> Tensor:
        return self.drop(h)


class Always(Moded):
    """Drops in both modes, as nothing tells the function which it is."""

    def between(self, h: Tensor) -> Tensor:
        return functional.dropout(h)


class WithConstants(Moded):
    def between(self, h: Tensor) -> Tensor:
        assert h.shape[0] < 100
        # a new object in each pass, and not equal to the last one
        nothing = float("nan")
        return (h * torch.tensor([1.0, 2.0, 3.0, 4.0])).nan_to_num(nothing)


class Keeping(Moded):
    """Makes a table in its first pass, and keeps its last features."""

    table: Tensor | None = None

    def between(self, h: Tensor) -> Tensor:
        if self.table is None:
            self.table = torch.arange(4.0)
        self.last = h
        return h + self.table


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("kind", [InLayers, Always])
def test_what_does_the_same_in_both_modes_is_cut(kind: type[Moded], mode: bool) -> None:
    model = kind().train(mode)
    device, server = split_at(model, "first")
    assert device.training == server.training == mode
    check_same(model, "first")


@pytest.mark.parametrize("kind", [WithConstants, Keeping])
def test_a_model_with_constants_or_tables_is_cut_alike_each_time(
    kind: type[Moded],
) -> None:
    model, x = kind(), torch.randn(8, 4)
    (_, once), (device, server) = (split_at(model, "first") for _ in range(2))
    assert list(once.state_dict()) == list(server.state_dict())
    assert torch.equal(server(device(x)), model(x))


@pytest.mark.parametrize("layer", ["first", "no"])
def test_the_model_is_as_it_was(layer: str) -> None:
    model = Keeping()
    model.second.eval()
    before = {name: dict(vars(part)) for name, part in model.named_modules()}
    if layer == "no":
        with pytest.raises(ValueError, match="nothing named 'no'"):
            split_at(model, "first", also=["no"])
    else:
        split_at(model, layer)
    after = {name: dict(vars(part)) for name, part in model.named_modules()}
    assert after == before
    assert [part.training for part in model.modules()] == [True, True, False, True]


class Frozen(nn.Sequential):
    """Its normalisation stays in evaluation mode."""

    def train(self, mode: bool = True) -> "Frozen":
        super().train(mode)
        self[1].eval()
        return self


def frozen() -> Frozen:
    return Frozen(nn.Linear(4, 4), nn.BatchNorm1d(4))


def test_a_train_of_its_own_is_refused_where_neither_half_would_have_it() -> None:
    model = nn.Sequential(nn.Linear(4, 4), frozen(), nn.Linear(4, 2))
    with pytest.raises(
        ValueError, match=r"after '1.0': .* the train.. of 1, which does"
    ):
        split_at(model, "1.0")
    for layer in (0, 1):
        device, server = check_same(model, layer)
        norm = (server if layer == 0 else device).get_submodule("1.1")
        assert [norm.train().training, norm.eval().training] == [True, False]
        device.train()
        server.train()
        assert not norm.training


@pytest.mark.parametrize("is_chain", [True, False])
def test_a_train_of_the_model_itself_is_refused(is_chain: bool) -> None:
    model = frozen() if is_chain else Nested()
    if not is_chain:
        model.train = MethodType(lambda self, mode=True: self, model)
    with pytest.raises(ValueError, match=r"have the train.. of the model itself"):
        split_at(model, 0 if is_chain else "inner.0")


class Pretrained(nn.Module):
    """Overrides ``train`` as Hugging Face's models do: only kernels would be cast anew."""

    use_kernels = False

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.last = inner, nn.Linear(4, 2)
        self.scale = 2.0
        self.register_buffer("places", torch.arange(4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.scale * self.inner(x))

    def train(self, mode: bool = True) -> "Pretrained":
        was_changed = self.training != mode
        super().train(mode)
        if self.use_kernels and was_changed:
            self.cast_kernels()
        return self

    def eval(self) -> "Pretrained":
        return self.train(False)

    def cast_kernels(self) -> None:
        self.inner.forward = torch.tanh


class Middle(Pretrained):
    """One within another, as an encoder within a classifier."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.pad(super().forward(x), (0, 2))


def pretrained(kind: type[Pretrained] = Pretrained) -> Pretrained:
    inner = nn.Sequential(nn.Linear(4, 4), frozen(), nn.Linear(4, 4))
    return kind(Middle(inner))


def everything_of(model: nn.Module) -> list[Any]:
    attributes = [dict(vars(part)) for part in model.modules()]
    weights = [(weight, weight.requires_grad) for weight in model.parameters()]
    return [attributes, weights, [buffer.clone() for buffer in model.buffers()]]


@pytest.mark.parametrize("mode", [True, False])
def test_a_train_that_does_what_that_of_torch_does_is_no_loss(mode: bool) -> None:
    model = pretrained().train(mode)
    model.inner.inner[1].requires_grad_(False)
    before = repr(everything_of(model))
    split_at(model, "inner.inner.1")
    assert repr(everything_of(model)) == before
    check_same(model, "inner.inner.1")


class FreezesNorm(Pretrained):
    def train(self, mode: bool = True) -> "FreezesNorm":
        super().train(mode)
        for part in self.modules():
            if isinstance(part, nn.BatchNorm1d | nn.LayerNorm):
                part.eval()
        return self


class FreezesWeights(Pretrained):
    def train(self, mode: bool = True) -> "FreezesWeights":
        super().train(mode)
        self.inner.requires_grad_(not mode)
        return self


class KeepsItsMode(Pretrained):
    def train(self, mode: bool = True) -> "KeepsItsMode":
        return self


class Scales(Pretrained):
    def train(self, mode: bool = True) -> "Scales":
        super().train(mode)
        self.scale = 2.0 if mode else 1.0
        return self


class CastsKernels(Pretrained):
    use_kernels = True


class NeedsValues(Pretrained):
    def train(self, mode: bool = True) -> "NeedsValues":
        if self.last.weight.abs().sum() > 1e9:
            raise ValueError("too large to train")
        return super().train(mode)


class ActsOnAChange(Pretrained):
    def train(self, mode: bool = True) -> "ActsOnAChange":
        begins = mode and not self.training
        super().train(mode)
        if begins:
            self.inner[1].eval()
        return self


class ClampsWeights(Pretrained):
    def train(self, mode: bool = True) -> "ClampsWeights":
        super().train(mode)
        with torch.no_grad():
            self.last.weight.clamp_(-0.01, 0.01)
        return self


class SwapsWeights(Pretrained):
    def train(self, mode: bool = True) -> "SwapsWeights":
        super().train(mode)
        self.inner[0].weight.data = self.inner[2].weight
        return self


class HooksALayer(Pretrained):
    def train(self, mode: bool = True) -> "HooksALayer":
        super().train(mode)
        self.inner.register_forward_hook(print)
        return self


class ReplacesALayer(Pretrained):
    def train(self, mode: bool = True) -> "ReplacesALayer":
        super().train(mode)
        self.inner[0] = self.inner[2]
        return self


class ReachesTheModel(Pretrained):
    """By a function, which a copy shares with its model."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__(inner)
        self.flip = lambda mode: inner.train(not mode)

    def train(self, mode: bool = True) -> "ReachesTheModel":
        super().train(mode)
        self.flip(mode)
        return self


@pytest.mark.parametrize(
    "kind",
    [
        ActsOnAChange,
        CastsKernels,
        ClampsWeights,
        FreezesNorm,
        FreezesWeights,
        HooksALayer,
        KeepsItsMode,
        NeedsValues,
        ReachesTheModel,
        ReplacesALayer,
        Scales,
        SwapsWeights,
    ],
)
def test_a_train_that_does_more_is_refused_and_leaves_the_model_alone(
    kind: type[Pretrained],
) -> None:
    inner = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4))
    model = Pretrained(kind(inner))
    before = repr(everything_of(model))
    with pytest.raises(ValueError, match=r"the train.. of .*inner, which does more"):
        split_at(model, "inner.inner.0")
    assert repr(everything_of(model)) == before


# -- modes of torch


class Within(Moded):
    """A part of its pass runs within something."""

    def __init__(self, mode: Callable[[], Any], decorates: bool = False) -> None:
        super().__init__()
        self.mode, self.decorates = mode, decorates

    def between(self, h: Tensor) -> Tensor:
        if self.decorates:
            return self.mode()(self.drop)(h)
        assert h.shape[0] < 100
        with self.mode():
            return self.drop(h).tanh()


def bfloat16() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


OTHER_MODES = [
    torch.no_grad,
    torch.inference_mode,
    lambda: torch.set_grad_enabled(False),
    bfloat16,
]


@pytest.mark.parametrize("mode", OTHER_MODES)
@pytest.mark.parametrize("decorates", [True, False])
def test_a_mode_that_neither_half_would_have_is_refused(
    mode: Callable[[], Any], decorates: bool
) -> None:
    message = "after 'first': drop runs in a mode of its own, as by torch.no_grad"
    with pytest.raises(ValueError, match=message):
        split_at(Within(mode, decorates), "first")


@pytest.mark.parametrize("mode", [torch.enable_grad, bfloat16])
def test_a_mode_that_is_the_same_as_around_the_model_is_cut(
    mode: Callable[[], Any],
) -> None:
    with mode():
        check_same(Within(mode), "first")


class WithinALayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Within(torch.no_grad), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def test_a_layer_has_its_own_mode() -> None:
    device, _ = check_same(WithinALayer(), "first")
    device(torch.ones(2, 4)).sum().backward()
    within = device.get_submodule("first")
    assert within.first.weight.grad is None
    assert within.second.weight.grad is not None


# -- what the model changes of itself


class Counting(Moded):
    """Counts its passes, by a function of the buffer."""

    def __init__(self, count: Callable[["Counting"], None]) -> None:
        super().__init__()
        self.count = count
        self.register_buffer("passes", torch.zeros(()))

    def between(self, h: Tensor) -> Tensor:
        self.count(self)
        return h


def in_place(model: Counting) -> None:
    model.passes += 1


def anew(model: Counting) -> None:
    model.passes = model.passes + 1


@pytest.mark.parametrize("count", [in_place, anew])
def test_a_model_that_changes_its_own_buffer_is_refused(
    count: Callable[[Counting], None],
) -> None:
    model = Counting(count)
    with pytest.raises(ValueError, match="its forward changes 'passes'"):
        split_at(model, "first")
    assert model.passes == 0


def test_a_layer_may_change_its_own_buffer() -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Counting(in_place), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x))

    device, server = split_at(Whole(), "first")
    server(device(torch.ones(2, 4)))
    assert device.get_submodule("first").passes == 1


# -- random numbers


class Drawing(Moded):
    """Its pass depends on what it draws while it is traced."""

    def __init__(self, draw: Callable[[], Any]) -> None:
        super().__init__()
        self.draw = draw

    def between(self, h: Tensor) -> Tensor:
        return h.tanh() if self.draw() < 2 else h


DRAWS = [
    random.random,
    np.random.random,
    lambda: torch.rand(1).item(),
    lambda: torch.randperm(2)[0].item(),
]


@pytest.mark.parametrize("draw", DRAWS)
def test_random_numbers_that_would_be_the_same_for_ever_are_refused(
    draw: Callable[[], Any],
) -> None:
    with pytest.raises(ValueError, match="its forward draws random numbers"):
        split_at(Drawing(draw), "first")


class DrawnAnew(Moded):
    def between(self, h: Tensor) -> Tensor:
        return h + torch.randn_like(h) + torch.empty(h.shape[0], 1).uniform_()


def test_random_numbers_of_the_batch_are_drawn_anew() -> None:
    check_same(DrawnAnew(), "first")


def test_other_threads_may_draw_while_a_model_is_cut() -> None:
    drawn: list[float] = []

    def draw_once() -> float:
        """Draw as another thread would, at some time."""
        if not drawn:
            drawn.append(random.random())
        return 0.0

    check_same(Drawing(draw_once), "first")
    assert drawn


def test_another_thread_may_draw_from_torch_all_the_time() -> None:
    def draw_beside() -> float:
        with ThreadPoolExecutor() as pool:
            return pool.submit(torch.rand, 1).result().item()

    check_same(Drawing(draw_beside), "first")


def test_a_pass_that_seeds_what_it_draws_leaves_no_chance() -> None:
    def draw_seeded() -> float:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return torch.rand(1).item()

    check_same(Drawing(draw_seeded), "first")


# -- changes in place


class InPlace(nn.Module):
    """Changes features after a branch has used them; its kinds do so in other ways."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle = nn.Linear(4, 4), nn.Linear(4, 4)
        self.last, self.act = nn.Linear(4, 2), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        branch = self.middle(h)
        self.change(h)
        return self.last(branch + h)

    def change(self, h: Tensor) -> None:
        h.mul_(2)


class ByFunction(InPlace):
    def change(self, h: Tensor) -> None:
        functional.relu_(h)


class ByOption(InPlace):
    def change(self, h: Tensor) -> None:
        functional.leaky_relu(h, inplace=True)


class ByLayer(InPlace):
    def change(self, h: Tensor) -> None:
        self.act(h)


class ByOperator(InPlace):
    def change(self, h: Tensor) -> None:
        h += 1.0


@pytest.mark.parametrize("kind", [InPlace, ByFunction, ByOption, ByLayer, ByOperator])
def test_a_change_in_place_does_not_go_before_what_needs_the_tensor_as_it_was(
    kind: type[InPlace],
) -> None:
    with pytest.raises(ValueError, match="changes first in place, and middle on the"):
        split_at(kind(), "first")
    check_same(kind(), "middle", also=["first"])


class ChangedOnTheServer(InPlace):
    """The cut layer needs the change, whose own result is needed after it."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        changed = h.mul_(2)
        return self.last(self.middle(h) + changed)


def test_a_change_in_place_does_not_go_after_what_needs_it() -> None:
    message = "mul_ changes first in place, and middle on"
    with pytest.raises(ValueError, match=message):
        split_at(ChangedOnTheServer(), "middle", also=["first"])


class WithTwoNames(InPlace):
    """A change shows by all names of the tensor."""

    def forward(self, x: Tensor) -> Tensor:
        h = skip = self.first(x)
        h += 1.0
        h *= 2.0
        h -= self.middle(h)
        h /= 3.0
        rows = h.shape[0]
        rows *= 2
        return self.last(h * skip).repeat(2, 1).view(rows, 2)


def test_operators_that_change_a_tensor_do_so_in_halves() -> None:
    check_same(WithTwoNames(), "first")


class Straight(InPlace):
    """Changes what nothing else uses, but for its shape."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        rows = h.shape[0]
        h.mul_(2)
        h = self.middle(h).relu_()
        self.act(h)
        return self.last(h).view(rows, 2)


@pytest.mark.parametrize("layer", ["first", "middle"])
def test_other_changes_in_place_are_cut(layer: str) -> None:
    also = [] if layer == "first" else ["getitem"]
    model, x = Straight(), torch.randn(8, 4)
    device, server = split_at(model, layer, also=also)
    assert torch.equal(server(device(x)), model(x))


def test_a_number_out_of_range_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    for number in (2, -3):
        with pytest.raises(ValueError, match=f"no layer {number}, it has 2"):
            split_at(model, number)


class Beside(nn.Module):
    """While its pass is traced, another thread calls a model, and one of its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 3)
        self.second = nn.Linear(3, 2)
        self.outputs: list[Tensor] = []
        # in a tuple, it is none of this model's layers
        self.others = (nn.Sequential(nn.Linear(3, 2)),)

    def forward(self, x: Tensor) -> Tensor:
        ones = torch.ones(1, 3)
        with ThreadPoolExecutor() as pool:
            for model in (*self.others, self.second):
                self.outputs.append(pool.submit(model, ones).result())
        return self.second(self.first(x))


def test_passes_in_other_threads_go_on_while_a_model_is_cut() -> None:
    model = Beside()
    device, server = split_at(model, "first")
    assert [type(output) for output in model.outputs] == 4 * [Tensor]
    x = torch.randn(5, 4)
    assert torch.equal(server(device(x)), model(x))


# -- parts that meet


def six_layers() -> nn.Sequential:
    parts: list[nn.Module] = [nn.Linear(4, 4), nn.Tanh(), nn.ReLU(), nn.Linear(4, 4)]
    return nn.Sequential(*parts, nn.ReLU(), nn.ReLU())


@pytest.mark.parametrize(
    ("first", "second"), [("0", 0), ("0_0", "0"), ("1", "1.1"), ("1.1", 1)]
)
def test_halves_meet_under_whatever_name_of_one_layer(
    first: str | int, second: str | int
) -> None:
    model = nn.Sequential(nn.Linear(4, 4), six_layers()[:2], nn.Linear(4, 2))
    device, _ = split_at(model, first)
    _, server = split_at(model, second)
    assert torch.equal(JoinedModel(device, server)(x := torch.randn(2, 4)), model(x))


@pytest.mark.parametrize(("device", "server"), [(0, 1), (1, 0)])
def test_halves_that_do_not_meet_are_not_joined(device: int, server: int) -> None:
    first, _ = split_at(six_layers(), device)
    _, second = split_at(six_layers(), server)
    with pytest.raises(ValueError, match=f"after '{device}', and .* after '{server}'"):
        JoinedModel(first, second)


@pytest.mark.parametrize("front_first", [True, False])
@pytest.mark.parametrize(("end", "meets"), [(3, True), (4, False)])
def test_a_middle_meets_both_parts_of_a_device(
    front_first: bool, end: int, meets: bool
) -> None:
    model = six_layers()
    if front_first:
        front, _ = split_at(model, 3)
        head, middle = split_at(front, 1)
    else:
        head, rest = split_at(model, 1)
        middle, _ = split_at(rest, "3")
    _, tail = split_at(model, end)
    parts = HeadAndTail(head, tail), middle
    if meets:
        assert torch.equal(JoinedModel(*parts)(x := torch.randn(2, 4)), model(x))
    else:
        with pytest.raises(ValueError, match=r"after '3', and .* after '4'"):
            JoinedModel(*parts)
