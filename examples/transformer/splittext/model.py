"""A small transformer in three parts: device half, server half and last layers."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from splittext.text import VOCABULARY

BLOCKS = 2  # on each side of the cut


class Block(nn.Module):
    """Attention to the characters so far, then two linear layers.

    Each comes after a LayerNorm and beside a shortcut.
    """

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
        projected = self.project(x).unflatten(-1, (3, self.heads, -1))
        # (B, T, 3, heads, C / heads) to three of (B, heads, T, C / heads)
        queries, keys, values = projected.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        return mixed.transpose(1, 2).flatten(2)


class DeviceHalf(nn.Module):
    """Characters (B, T) to features (B, T, C).

    Embeddings of character and place, and blocks.
    """

    def __init__(self, length: int, width: int, heads: int) -> None:
        super().__init__()
        self.characters = nn.Embedding(VOCABULARY, width)
        self.places = nn.Parameter(torch.randn(length, width))
        self.blocks = _blocks(width, heads)

    def forward(self, x: Tensor) -> Tensor:
        _, length = x.shape
        embedded = self.characters(x) + self.places[:length]
        out: Tensor = self.blocks(embedded)
        return out


class NextCharacter(nn.Module):
    """Features (B, T, C) to scores of the next characters.

    The scores are (B, characters, T), as losses take them.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scores = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, VOCABULARY))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.scores(x)
        return scores.transpose(1, 2)


def server_half(width: int, heads: int) -> nn.Sequential:
    """Return the other blocks and the last layers."""
    return _blocks(width, heads).append(NextCharacter(width))


def _blocks(width: int, heads: int) -> nn.Sequential:
    return nn.Sequential(*(Block(width, heads) for _ in range(BLOCKS)))
