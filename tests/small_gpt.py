"""A GPT as Hugging Face's are: a config object, blocks in a ModuleList, keyword inputs, an output by name."""

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Config:
    vocabulary: int = 11
    longest: int = 16
    width: int = 16
    heads: int = 2
    blocks: int = 3
    dropout: float = 0.0


class Output(OrderedDict):
    """A dict whose entries are attributes, too, as a ``ModelOutput`` is."""

    def __getattr__(self, name: str) -> Tensor:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Block(nn.Module):
    """Attention and an MLP, with conditions and functions that no tracer likes."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.norm_1 = nn.LayerNorm(config.width)
        self.norm_2 = nn.LayerNorm(config.width)
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)
        self.mlp = nn.Sequential(
            nn.Linear(config.width, 4 * config.width),
            nn.GELU(),
            nn.Linear(4 * config.width, config.width),
        )

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        batch, length, width = hidden.shape
        qkv = self.qkv(self.norm_1(hidden))
        q, k, v = qkv.view(batch, length, 3, self.config.heads, -1).permute(
            2, 0, 3, 1, 4
        )
        causal = torch.ones(length, length).tril() > 0
        if mask is not None and not mask.all():
            # each place sees itself, or a row of padding would see nothing
            causal = causal & mask[:, None, None, :] | torch.eye(length).bool()
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=causal)
        hidden = hidden + self.out(seen.transpose(1, 2).reshape(batch, length, width))
        hidden = hidden + self.mlp(self.norm_2(hidden))
        return F.dropout(hidden, self.config.dropout, training=self.training)


class SmallGpt(nn.Module):
    def __init__(self, config: Config = Config()) -> None:
        super().__init__()
        self.config = config
        self.transformer = nn.ModuleDict(
            {
                "words": nn.Embedding(config.vocabulary, config.width),
                "places": nn.Embedding(config.longest, config.width),
                "blocks": nn.ModuleList(Block(config) for _ in range(config.blocks)),
                "norm": nn.LayerNorm(config.width),
            }
        )
        self.head = nn.Linear(config.width, config.vocabulary, bias=False)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: object,
    ) -> Output:
        _, length = input_ids.size()
        assert length <= self.config.longest, f"{length} places are too many"
        if length == 0:
            raise ValueError("nothing came")
        places = torch.arange(length, device=input_ids.device)
        hidden = self.transformer.words(input_ids) + self.transformer.places(places)
        for block in self.transformer.blocks:
            hidden = block(hidden, mask=attention_mask)
        logits = self.head(self.transformer.norm(hidden))
        output = Output(logits=logits)
        if labels is not None:
            output["loss"] = F.cross_entropy(logits.transpose(1, 2), labels)
        return output


def next_word_loss(output: Output, labels: Tensor) -> Tensor:
    """A label for each place."""
    return F.cross_entropy(output["logits"].transpose(1, 2), labels)


def texts(count: int, rows: int = 8, length: int = 7) -> list[tuple[Tensor, Tensor]]:
    """Sequences that count on from their first word."""
    draw = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(count):
        first = torch.randint(11, (rows, 1), generator=draw)
        words = (first + torch.arange(length + 1)) % 11
        batches.append((words[:, :-1], words[:, 1:]))
    return batches


class Lora(nn.Module):
    """A frozen linear layer with a low-rank adapter beside it."""

    def __init__(self, layer: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Linear(layer.in_features, rank, bias=False)
        self.up = nn.Linear(rank, layer.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.up(self.down(x))


def gpt_with_lora() -> SmallGpt:
    """A frozen GPT with adapters in all blocks."""
    model = SmallGpt().requires_grad_(False)
    for block in model.transformer.blocks:
        block.qkv = Lora(block.qkv)
    return model
