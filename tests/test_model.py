"""Cutting models and joining halves."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import resnet18

from flwr_splitfc import HeadAndTail, JoinedModel, split_at, trained_only
from tests.small_gpt import Config, SmallGpt, gpt_with_lora, next_word_loss, texts


def check_cut(
    model: nn.Module, layer: str | int, x: Tensor
) -> tuple[nn.Module, nn.Module]:
    """Both halves do what the model does, in both modes, and their entries are the model's."""
    device, server = split_at(model, layer)
    joined = JoinedModel(device, server)
    for mode in (True, False):
        model.train(mode)
        joined.train(mode)
        assert torch.equal(joined(x), model(x))
    merged = {**device.state_dict(), **server.state_dict()}
    assert merged.keys() == model.state_dict().keys()
    model.load_state_dict(merged)
    assert set(map(id, joined.parameters())) == set(map(id, model.parameters()))
    return device, server


def sequential() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.BatchNorm1d(5), nn.Linear(5, 2))


@pytest.mark.parametrize("layer", [0, 1, 2, -2, "1"])
def test_sequential(layer: int | str) -> None:
    device, server = check_cut(sequential(), layer, torch.randn(8, 6))
    assert isinstance(device, nn.Sequential)
    assert isinstance(server, nn.Sequential)


@pytest.mark.parametrize("layer", [0, -2, "2"])
def test_a_half_is_cut_again_by_number_or_by_its_own_names(layer: int | str) -> None:
    _, rest = split_at(sequential(), 0)  # its layers are named 1, 2, 3
    first, _ = check_cut(rest, layer, torch.randn(8, 5))
    assert list(first) == list(rest[:2] if layer != 0 else rest[:1])


@pytest.mark.parametrize("layer", ["layer1", "layer2", "layer2.0", "maxpool"])
def test_a_named_cut_of_a_resnet(layer: str) -> None:
    with torch.no_grad():
        device, server = check_cut(
            resnet18(num_classes=10), layer, torch.randn(2, 3, 32, 32)
        )
    assert "conv1.weight" in device.state_dict()
    assert "fc.weight" in server.state_dict()


class Skip(nn.Module):
    """Adds its input to its output."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x))


class Twice(nn.Module):
    """Calls a layer on both sides of another."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(self.second(self.first(x)))


class Reused(nn.Module):
    """Uses a layer without parameters over and over."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.third = nn.Linear(4, 2)
        self.act = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.act(self.second(self.act(self.first(x)))))


@pytest.mark.parametrize(
    ("layer", "on_device"),
    [
        ("act_0", ["first"]),
        ("second", ["first", "second"]),
        ("act_1", ["first", "second"]),
    ],
)
def test_a_layer_without_parameters_may_be_on_both_sides(
    layer: str, on_device: list[str]
) -> None:
    model, x = Reused(), torch.randn(8, 4)
    device, server = split_at(model, layer)
    assert torch.equal(server(device(x)), model(x))
    assert {name.split(".")[0] for name in device.state_dict()} == set(on_device)
    assert (
        device.state_dict().keys() | server.state_dict().keys()
        == model.state_dict().keys()
    )


class Numbered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act, self.act_1 = nn.Sigmoid(), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.act_1(self.act(x)))


def test_a_layer_whose_name_ends_in_a_number_is_no_call() -> None:
    model, x = Numbered(), torch.randn(8, 4)
    device, server = split_at(model, "act_1")
    assert torch.equal(device(x), model.act_1(model.act(x)))
    assert torch.equal(server(device(x)), model(x))


class Branch(nn.Module):
    """Depends on its data."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)) if x.sum() > 0 else x


class FunctionalDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(functional.dropout(self.first(x), training=self.training))


@pytest.mark.parametrize(
    ("model", "layer", "message"),
    [
        (sequential(), 3, "nothing is left"),
        (
            sequential(),
            "seven",
            "no layer 'seven'; its outermost layers are 0, 1, 2, 3",
        ),
        (Skip(), "", "no layer ''"),
        (Skip(), "first", "add also needs x"),
        (Twice(), "second", "first is used on both sides"),
        (Twice(), "first", "called 2 times in a pass: name one of first_0, first_1"),
        (Twice(), "first_2", "called 2 times"),
        (Reused(), "act", "name one of act_0, act_1"),
        (Branch(), "first", "cannot trace it"),
        (FunctionalDropout(), "first", "training mode for ever"),
    ],
)
def test_where_a_model_cannot_be_cut_it_says_why(
    model: nn.Module, layer: int | str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        split_at(model, layer)


def test_two_cuts() -> None:
    model, x = sequential().eval(), torch.randn(8, 6)
    head, rest = split_at(model, 0)
    middle, tail = split_at(rest, "2")
    joined = JoinedModel(HeadAndTail(head, tail), middle).eval()
    assert torch.equal(joined(x), model(x))
    assert {name.split(".")[0] for name in joined.state_dict()} == {"device", "server"}
    entries = {**head.state_dict(), **middle.state_dict(), **tail.state_dict()}
    assert entries.keys() == model.state_dict().keys()


# -- models of Hugging Face's and timm's kind


@pytest.mark.parametrize("block", [0, 1, 2])
def test_a_gpt_is_cut_after_a_block(block: int) -> None:
    model = SmallGpt(Config(dropout=0.1))
    (ids, labels), *_ = texts(1)
    device, server = split_at(model, f"transformer.blocks.{block}")
    joined = JoinedModel(device, server)
    for mode in (True, False):
        model.train(mode)
        joined.train(mode)
        torch.manual_seed(0)
        logits = joined(ids)["logits"]
        torch.manual_seed(0)
        assert torch.equal(logits, model(input_ids=ids).logits)
    next_word_loss(joined(ids), labels).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    merged = {**device.state_dict(), **server.state_dict()}
    assert merged.keys() == model.state_dict().keys()


@pytest.mark.parametrize("length", [1, 7, 16])
def test_a_cut_gpt_takes_any_length(length: int) -> None:
    model = SmallGpt()
    device, server = split_at(model, "transformer.blocks.0")
    (ids, _), *_ = texts(1, length=length)
    assert torch.equal(server(device(ids))["logits"], model(ids).logits)


def test_inputs_may_be_named_and_pass_the_cut() -> None:
    model = SmallGpt()
    (ids, _), *_ = texts(1)
    mask = torch.ones_like(ids) > 0
    mask[:, -2:] = False
    inputs = ("input_ids", "attention_mask")
    message = (
        "transformer_blocks_1 also needs attention_mask. To send them to the server, "
        r"too: split_at\(model, 'transformer.blocks.0', also=\('attention_mask',\)\)"
    )
    with pytest.raises(ValueError, match=message):
        split_at(model, "transformer.blocks.0", inputs=inputs)
    device, server = split_at(
        model, "transformer.blocks.0", also=("attention_mask",), inputs=inputs
    )
    features = device(input_ids=ids, attention_mask=mask)
    assert list(features) == ["transformer.blocks.0", "attention_mask"]
    wanted = model(ids, attention_mask=mask).logits
    assert not torch.equal(wanted, model(ids).logits)
    assert torch.equal(server(features)["logits"], wanted)


class TwoTowers(nn.Module):
    """Its second input is used apart from the first one, and a third one nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.table = nn.Linear(4, 3), nn.Linear(2, 3)
        self.head = nn.Linear(6, 2)

    def forward(
        self, x: Tensor, columns: Tensor, ids: Tensor, scale: float = 2.0
    ) -> Tensor:
        assert columns.shape[1] == 2
        towers = [self.image(x), self.table(columns)]
        return self.head(torch.cat(towers, 1)) * scale


def test_an_input_that_only_the_server_half_needs_is_refused() -> None:
    message = (
        r"table also needs columns\. .*also=\('columns',\)\)\. "
        "But the model's input columns is the device's own data"
    )
    with pytest.raises(ValueError, match=message):
        split_at(TwoTowers(), "image")


@pytest.mark.parametrize(
    ("layer", "also"), [("image", ["columns"]), ("image", ["table"]), ("head", [])]
)
def test_the_device_half_has_all_inputs(layer: str, also: list[str]) -> None:
    model = TwoTowers()
    inputs = torch.randn(8, 4), torch.randn(8, 2), torch.arange(8)
    device, server = split_at(model, layer, also=also)
    assert torch.equal(server(device(*inputs)), model(*inputs))


class UNet(nn.Module):
    """Skip connections around the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.middle = nn.Linear(4, 4)
        self.up = nn.ModuleList([nn.Linear(8, 4), nn.Linear(8, 4)])

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for layer in self.down:
            x = layer(x).relu()
            skips.append(x)
        x = self.middle(x)
        for layer in self.up:
            x = layer(torch.cat([x, skips.pop()], 1))
        return x


def test_skip_connections_pass_the_cut_by_name() -> None:
    model, x = UNet(), torch.randn(8, 4)
    with pytest.raises(ValueError, match=r"cat_1 also needs relu, relu_1\. .*also="):
        split_at(model, "middle")
    device, server = split_at(model, "middle", also=("relu", "relu_1"))
    features = device(x)
    assert {name: tensor.shape for name, tensor in features.items()} == dict.fromkeys(
        ("middle", "relu", "relu_1"), (8, 4)
    )
    assert torch.equal(server(features), model(x))


class Stages(nn.Module):
    """Blocks in Sequentials in a ModuleList, and layers by the config."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [nn.Sequential(nn.Linear(4, 4), nn.GELU()) for _ in range(4)]
        self.stages = nn.ModuleList(
            [nn.Sequential(*blocks[:2]), nn.Sequential(*blocks[2:])]
        )
        self.norm = nn.Identity()
        self.head = nn.Linear(4, 2)

    def forward_features(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)
        return self.norm(x)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.forward_features(x)
        return x if pre_logits else self.head(x)


@pytest.mark.parametrize("layer", ["stages.0", "stages.1.0", "stages.1.0.1", "norm"])
def test_stages_of_blocks_are_cut_at_any_depth(layer: str) -> None:
    check_cut(Stages(), layer, torch.randn(8, 4))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(11, 4), nn.Linear(4, 11, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.words(ids))


class AllOptional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        return self.second(self.first(x))


def test_what_cannot_be_cut_says_why() -> None:
    with pytest.raises(ValueError, match=r"head.weight of the server half is words.w"):
        split_at(Tied(), "words")
    with pytest.raises(ValueError, match=r"inputs=\(\.\.\.\), of x, y"):
        split_at(AllOptional(), "first")
    with pytest.raises(ValueError, match="nothing named 'z'; it has x, first"):
        split_at(AllOptional(), "first", also=("z",), inputs=("x",))
    with pytest.raises(ValueError, match="depends on the batch's values or sizes"):
        split_at(Branch(), "first")


# -- adapters


def test_only_adapters_are_in_the_state_dicts_of_halves() -> None:
    model = gpt_with_lora()
    halves = split_at(model, "transformer.blocks.0")
    device, server = map(trained_only, halves)
    assert list(device.state_dict()) == [
        "transformer.blocks.0.qkv.down.weight",
        "transformer.blocks.0.qkv.up.weight",
    ]
    assert len(server.state_dict()) == 4
    before = model.transformer.words.weight.clone()
    loaded = {name: torch.ones_like(t) for name, t in device.state_dict().items()}
    device.load_state_dict(loaded)
    assert torch.equal(model.transformer.words.weight, before)
    assert (model.transformer.blocks[0].qkv.up.weight == 1).all()
    joined = JoinedModel(device, server)
    joined.load_state_dict(joined.state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        device.load_state_dict({})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        device.load_state_dict({**loaded, "other": torch.ones(1)})
