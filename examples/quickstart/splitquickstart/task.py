"""The model's two halves, the training loop, and the test."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flwr_splitfc.settings import check_least
from flwr_splitfc.vision import Batches


@dataclass(frozen=True)
class Settings:
    """Keys of the run-config; `flwr_splitfc.vision` reads those of data and batches."""

    strategy: Literal["splitfc", "split-learning", "fedavg"]
    num_server_rounds: int
    fraction_evaluate: float
    local_epochs: int
    learning_rate: float
    num_devices: int
    seed: int

    def __post_init__(self) -> None:
        check_least(self, num_server_rounds=1, local_epochs=1, num_devices=1)


class DeviceHalf(nn.Module):
    """LeNet's convolutions: images (B, C, H, W) to features (B, 16, 5, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 6, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )

    def forward(self, x: Tensor) -> Tensor:
        # images of other sizes, and grey ones, become 32 x 32 pixels of three colours
        images = F.interpolate(x, size=(32, 32)).expand(-1, 3, -1, -1)
        features: Tensor = self.layers(2 * images - 1)  # from [0, 1] to [-1, 1]
        return features


class ServerHalf(nn.Sequential):
    """LeNet's linear layers: features (B, 16, 5, 5) to ten scores (B, 10)."""

    def __init__(self) -> None:
        super().__init__(
            nn.Flatten(),
            nn.Linear(16 * 5 * 5, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, 10),
        )


def train(
    model: nn.Module,
    criterion: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    epochs: int,
) -> None:
    """Train `model`; with `server.loss` as the criterion, half of a model."""
    model.train()
    for _ in range(epochs):
        for x, y in batches:
            optimizer.zero_grad()
            loss = criterion(model(x), y)
            loss.backward()
            optimizer.step()


@torch.no_grad()
def test(predict: Callable[[Tensor], Tensor], batches: Batches) -> dict[str, float]:
    """Return the accuracy of `predict`, which makes scores of images."""
    right = 0
    examples = 0
    for x, y in batches:
        right += int((predict(x).argmax(1) == y).sum())
        examples += len(y)
    return {"eval_acc": right / examples, "num-examples": examples}
