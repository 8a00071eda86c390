"""A small model in two halves, and made-up data with something to learn."""

import torch
from torch import Tensor, nn

CLASSES = 4


class DeviceHalf(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class ServerHalf(nn.Module):
    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def seeded(make, seed: int = 0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def batches(count: int, rows: int = 16, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Pictures of 8 x 8 whose bright quadrant is their class."""
    generator = torch.Generator().manual_seed(seed)
    return [batch(rows, generator) for _ in range(count)]


def batch(rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    classes = torch.randint(CLASSES, (rows,), generator=generator)
    pictures = torch.rand(rows, 1, 8, 8, generator=generator)
    for picture, label in zip(pictures, classes.tolist(), strict=True):
        top, left = 4 * (label // 2), 4 * (label % 2)
        picture[0, top : top + 4, left : left + 4] += 1.0
    return pictures, classes


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
