"""The model in three parts, a device's text, and evaluation."""

from dataclasses import dataclass

import torch
from flwr.app import Context
from torch import Tensor, nn
from torch.nn import functional as F

from flwr_splitfc import split_at
from flwr_splitfc.batches import Batches, evaluate, turn_batches
from flwr_splitfc.settings import check_least, read_settings
from splittext.text import VOCABULARY, TextSettings, device_windows, held_out_windows

BLOCKS = 2  # on each side of the cut


@dataclass(frozen=True)
class ModelSettings:
    """What the run-config says about the model: the numbers of a character, C, and of heads that share them."""

    width: int = 64
    heads: int = 4

    def __post_init__(self) -> None:
        check_least(self, width=1, heads=1)
        if self.width % self.heads:
            raise ValueError(
                f"width is {self.width}, wanted a multiple of heads, {self.heads}"
            )


class Block(nn.Module):
    """Attention to the characters so far, then two linear layers; each after a LayerNorm and beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.project = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 3 * width))
        self.attended = nn.Linear(width, width)
        self.feed = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attended(self._attention(x))
        out: Tensor = x + self.feed(x)
        return out

    def _attention(self, x: Tensor) -> Tensor:
        # (B, T, 3, heads, C / heads)
        heads = self.project(x).unflatten(-1, (3, self.heads, -1))
        queries, keys, values = heads.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        return mixed.transpose(1, 2).flatten(2)


class DeviceHalf(nn.Module):
    """Characters (B, T) to features (B, T, C): embeddings of character and place, and blocks."""

    def __init__(self, length: int, width: int, heads: int) -> None:
        super().__init__()
        self.characters = nn.Embedding(VOCABULARY, width)
        self.places = nn.Parameter(torch.randn(length, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(BLOCKS)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.blocks(self.characters(x) + self.places[: x.shape[1]])
        return out


class NextCharacter(nn.Module):
    """What blocks give, (B, T, C), to scores of the next characters, (B, characters, T) as losses have them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scores = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, VOCABULARY))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.scores(x)
        return scores.transpose(1, 2)


def make_device_half(context: Context) -> DeviceHalf:
    """The embeddings and the first blocks."""
    model, length = _settings(context)
    return DeviceHalf(length, model.width, model.heads)


def make_server_half(context: Context) -> nn.Module:
    """The other blocks and the last layers, without those where they are the devices' (``u-shaped``)."""
    rest = _rest(context)
    return split_at(rest, -2)[0] if context.run_config.get("u-shaped") else rest


def make_tail(context: Context) -> nn.Module:
    """The last layers."""
    return split_at(_rest(context), -2)[1]


def _rest(context: Context) -> nn.Module:
    model, _ = _settings(context)
    blocks = (Block(model.width, model.heads) for _ in range(BLOCKS))
    return nn.Sequential(*blocks, NextCharacter(model.width))


def _settings(context: Context) -> tuple[ModelSettings, int]:
    config = context.run_config
    return read_settings(ModelSettings, config), read_settings(
        TextSettings, config
    ).context_length


def load_data(context: Context) -> tuple[Batches, Batches]:
    """A device's topics, to train on and to evaluate on, too: other topics are the server's to test."""
    share = device_windows(context.run_config, int(context.node_config["partition-id"]))
    return turn_batches(share, context.run_config)


def evaluate_on_test_topics(model: nn.Module, context: Context) -> dict[str, float]:
    """Loss and accuracy of the whole model, for each character of the topics that no device has."""
    return evaluate(model, held_out_windows(context.run_config), batch_size=256)
