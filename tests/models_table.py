"""The table of models in docs/models.md. To write it anew, in the repository's root:

python -m tests.models_table
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flwr_splitfc import JoinedModel, SplitError, connect, cut_codec, split_at
from flwr_splitfc.exchange import HalfTrainer, SharedHalf, SplitEndpoint
from tests.halves import DeviceHalf, ServerHalf, batches, seeded
from tests.local_grid import ticket_message
from tests.small_gpt import SmallGpt, gpt_with_lora, next_word_loss, texts

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
BEGIN, END = "<!-- models: begin -->\n", "<!-- models: end -->\n"
SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)

Halves = tuple[nn.Module, nn.Module]
Batches = list[tuple[Any, Tensor]]
ROWS, WORDS, WIDTH = 8, 11, 6


@dataclass(frozen=True)
class Case:
    """A model in two halves, and what it trains on."""

    name: str
    at_the_cut: str
    halves: Callable[[], Halves]
    data: Batches
    loss_fn: Callable[[Any, Tensor], Tensor] = F.cross_entropy


def pictures() -> Batches:
    return batches(3)


def words(*lengths: int) -> Batches:
    draw = torch.Generator().manual_seed(0)
    made = []
    for length in lengths:
        ids = torch.randint(1, WORDS, (ROWS, length), generator=draw)
        ids[:2, -1] = 0
        made.append((ids, ids[:, 0] % 3))
    return made


class Quickstart(nn.Module):
    """Flower's own quickstart uses `pool` twice, and functions between its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 8, 2)
        self.pool = nn.MaxPool2d(2, stride=1)
        self.fc = nn.Linear(8 * 9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        return self.fc(x.flatten(1))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, 2, 1)
        self.up = nn.ConvTranspose2d(4, 4, 2, 2)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x).relu()
        up = self.up(self.deep(skip).relu())
        return self.last(torch.cat([up, skip], 1)).mean((2, 3))


class Stages(nn.Module):
    """As timm's models are: `forward_features`, blocks in Sequentials, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 4, 4)
        blocks = [nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)) for _ in range(4)]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(8, 4)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.blocks(self.stem(x).flatten(2).transpose(1, 2))

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.forward_features(x).mean(1)
        return x if pre_logits else self.head(x)


class Gives(nn.Module):
    """A device half of two layers whose outputs are arranged."""

    def __init__(self, arrange: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.wide, self.thin = nn.Linear(64, 32), nn.Linear(64, 8)
        self.arrange = arrange

    def forward(self, x: Tensor) -> Any:
        x = x.flatten(1)
        return self.arrange(self.wide(x).relu(), self.thin(x).relu())


class Takes(nn.Module):
    """A server half of two tensors."""

    def __init__(self, pick: Callable[[Any], list[Tensor]]) -> None:
        super().__init__()
        self.last = nn.Linear(40, 4)
        self.pick = pick

    def forward(self, features: Any) -> Tensor:
        return self.last(torch.cat(self.pick(features), 1))


def two_tensors(arrange: Callable[[Tensor, Tensor], Any], pick: Any) -> Halves:
    return Gives(arrange), Takes(pick)


class Embedded(nn.Module):
    """Token ids to hidden states, with a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        return {"hidden": self.layer(self.embedding(ids)), "mask": ids != 0}


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru, self.last = nn.GRU(WIDTH, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        outputs, _ = self.gru(features["hidden"])
        mask = features["mask"].unsqueeze(-1)
        return self.last((outputs * mask).sum(1) / mask.sum(1))


class Recurrent(nn.Module):
    def __init__(self, rows_first: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.gru = nn.GRU(WIDTH, 5, batch_first=True)
        self.rows_first = rows_first

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        outputs, state = self.gru(self.embedding(ids))
        return outputs, state.transpose(0, 1) if self.rows_first else state


class OfState(nn.Module):
    def __init__(self, rows_first: bool) -> None:
        super().__init__()
        self.last = nn.Linear(5, 3)
        self.rows = 0 if rows_first else 1

    def forward(self, features: tuple[Tensor, Tensor]) -> Tensor:
        outputs, state = features
        return self.last(outputs.mean(1) + state.mean(1 - self.rows))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.norm = nn.Embedding(WORDS, WIDTH), nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.words(ids))).transpose(1, 2)


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.second(x.relu() if x.sum() > 0 else x)


class Named(NamedTuple):
    wide: Tensor
    thin: Tensor


@dataclass
class Output:
    wide: Tensor
    thin: Tensor


def batch_norm() -> Halves:
    device = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    server = nn.Sequential(nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 4))
    return device, server


def frozen() -> Halves:
    return DeviceHalf().requires_grad_(False), ServerHalf()


def lazy() -> Halves:
    return DeviceHalf(), nn.Sequential(nn.Flatten(), nn.LazyLinear(4))


class Unchanged(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return x


def ids_alone() -> Halves:
    return Unchanged(1, 1), nn.Sequential(nn.Embedding(WORDS, 3), nn.Flatten())


AFTER_ONE = "transformer.blocks.0"
CASES = [
    Case("two modules", "a tensor", lambda: (DeviceHalf(), ServerHalf()), pictures()),
    Case(
        "a layer that is used twice, cut at its second call",
        "a tensor",
        lambda: split_at(Quickstart(), "pool_1"),
        pictures(),
    ),
    Case("BatchNorm in both halves", "a tensor", batch_norm, pictures()),
    Case("a frozen device half", "a tensor", frozen, pictures()),
    Case(
        "a U-Net's skip connection",
        "a dict, by `also=`",
        lambda: split_at(UNet(), "deep", also=("relu",)),
        pictures(),
    ),
    Case(
        "a tuple",
        "`(wide, thin)`",
        lambda: two_tensors(lambda a, b: (a, b), list),
        pictures(),
    ),
    Case(
        "a dict, nested, with a None",
        "`{'all': [wide, (thin, None)]}`",
        lambda: two_tensors(
            lambda a, b: {"all": [a, (b, None)]},
            lambda f: [f["all"][0], f["all"][1][0]],
        ),
        pictures(),
    ),
    Case(
        "a tuple of which one tensor is detached",
        "`(wide.detach(), thin)`",
        lambda: two_tensors(lambda a, b: (a.detach(), b), list),
        pictures(),
    ),
    Case(
        "hidden states with a mask",
        "`{'hidden': ..., 'mask': ids != 0}`",
        lambda: (Embedded(), Masked()),
        words(5, 5, 5),
    ),
    Case(
        "sequences of varying length",
        "the same",
        lambda: (Embedded(), Masked()),
        words(5, 9, 2),
    ),
    Case(
        "blocks as timm has them",
        "a tensor (B, T, C)",
        lambda: split_at(Stages(), "blocks.1"),
        pictures(),
    ),
    Case(
        "a GPT as Hugging Face has them: config, ModuleList, keywords",
        "a tensor (B, T, C); a label for each position",
        lambda: split_at(SmallGpt(), AFTER_ONE),
        texts(3),
        next_word_loss,
    ),
    Case(
        "the same with LoRA in both halves",
        "a tensor (B, T, C)",
        lambda: split_at(gpt_with_lora(), AFTER_ONE),
        texts(3),
        next_word_loss,
    ),
    Case(
        "a GRU's outputs and state, rows first",
        "`(outputs, state.transpose(0, 1))`",
        lambda: (Recurrent(True), OfState(True)),
        words(5, 9, 2),
    ),
    Case(
        "a GRU's outputs and state as they are",
        "`(outputs, state)`",
        lambda: (Recurrent(False), OfState(False)),
        words(5),
    ),
    Case(
        "a named tuple",
        "`Named(wide, thin)`",
        lambda: two_tensors(Named, list),
        pictures(),
    ),
    Case(
        "a dataclass",
        "`Output(wide, thin)`",
        lambda: two_tensors(Output, lambda f: [f.wide, f.thin]),
        pictures(),
    ),
    Case("token ids alone", "`ids`", ids_alone, words(5)),
    Case(
        "tied weights on both sides",
        "a tensor",
        lambda: split_at(Tied(), "words"),
        texts(1),
    ),
    Case(
        "a pass that depends on the batch's values",
        "a tensor",
        lambda: split_at(Branching(), "first"),
        [(torch.rand(ROWS, 8), torch.zeros(ROWS, dtype=torch.int64))],
    ),
    Case("a lazy layer in the server half", "a tensor", lazy, pictures()),
]


def table() -> str:
    lines = ["| model | at the cut | what happens |", "| --- | --- | --- |"]
    for case in CASES:
        lines.append(f"| {case.name} | {case.at_the_cut} | {outcome(case)} |")
    return "\n".join(lines) + "\n"


def outcome(case: Case) -> str:
    """What comes of training a case in a real session, beside the unsplit model."""
    try:
        device, server = seeded(case.halves)
        gradient_bytes = train_split(case, device, server)
    except (SplitError, TypeError, ValueError) as error:
        first_line, *_ = str(error).splitlines()
        return f"{type(error).__name__}: {first_line}".replace("|", "\\|")
    joined = JoinedModel(*seeded(case.halves))
    train_unsplit(case, joined)
    for wanted, half in ((joined.device, device), (joined.server, server)):
        for name, tensor in wanted.state_dict().items():
            torch.testing.assert_close(half.state_dict()[name], tensor)
    ways = "" if gradient_bytes else ", and no gradient comes down"
    return f"trains as the unsplit model{ways}"


def train_split(case: Case, device: nn.Module, server: nn.Module) -> int:
    half = HalfTrainer(server, case.loss_fn, SGD, device="cpu")
    with SplitEndpoint(SharedHalf(half), cut_codec("float32")) as endpoint:
        with connect(ticket_message(endpoint)) as session:
            optimizer = SGD(device.parameters())
            for x, y in case.data:
                optimizer.zero_grad()
                session.loss(device(x), y).backward()
                optimizer.step()
        half.apply_begun()
        return endpoint.ledger.of(1, "train").downlink_bytes["gradient"]


def train_unsplit(case: Case, joined: JoinedModel) -> None:
    optimizers = [SGD(joined.device.parameters()), SGD(joined.server.parameters())]
    for x, y in case.data:
        for optimizer in optimizers:
            optimizer.zero_grad()
        case.loss_fn(joined(x), y).backward()
        for optimizer in optimizers:
            optimizer.step()


def main() -> None:
    before, rest = PAGE.read_text().split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(f"{before}{BEGIN}{table()}{END}{after}")


if __name__ == "__main__":
    main()
