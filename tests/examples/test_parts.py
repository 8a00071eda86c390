"""The parts of every example's model: three are the whole, and heads fit the features."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from flwr.app import Context, RecordDict
from torch import nn

import splitceleba.task
import splitcifar.task
import splitmnist.task
import splittable.task
import splittext.task
from flwr_splitfc.apps.factories import make_half
from flwr_splitfc.vision import DatasetSpec

TASKS = [
    (splitmnist.task, (torch.rand(2, 1, 8, 8),), {}),
    (splitcifar.task, (torch.rand(2, 3, 32, 32),), {"width": 0.125}),
    (splitceleba.task, (torch.rand(2, 3, 64, 64),), {}),
    (splittext.task, (torch.randint(128, (2, 64)),), {}),
    (splittable.task, (torch.rand(2, 10),), {}),
]


def shapes(*parts: nn.Module) -> list[torch.Size]:
    return [weight.shape for part in parts for weight in part.parameters()]


each_task = pytest.mark.parametrize(
    ("task", "inputs", "settings"),
    TASKS,
    ids=lambda value: getattr(value, "__name__", ""),
)

Part = Callable[[Callable[..., nn.Module], bool], nn.Module]


@pytest.fixture
def part(task: Any, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Part:
    """What makes a part of a task's model, U-shaped or not."""
    if task is splitcifar.task:
        data = type("Data", (), {"spec": DatasetSpec(3, 32, 10)})
        monkeypatch.setattr(task, "datasets_of", lambda config: (data, data))

    def made(make: Callable[..., nn.Module], u_shaped: bool) -> nn.Module:
        config = {"u-shaped": u_shaped, **settings}
        return make_half(make, Context(1, 1, {}, RecordDict(), config))

    return made


@each_task
def test_three_parts_are_the_whole(
    task: Any, inputs: tuple[torch.Tensor], part: Part
) -> None:
    head, whole = part(task.make_device_half, False), part(task.make_server_half, False)
    middle, tail = part(task.make_server_half, True), part(task.make_tail, True)
    assert shapes(middle, tail) == shapes(whole)
    assert shapes(tail)
    assert tail(middle(head(*inputs))).shape == whole(head(*inputs)).shape


@each_task
def test_an_auxiliary_head_makes_what_the_server_half_makes(
    task: Any, inputs: tuple[torch.Tensor], part: Part
) -> None:
    device_half = part(task.make_device_half, False)
    server_half = part(task.make_server_half, False)
    features = device_half(*inputs)
    head = part(task.make_auxiliary, False)
    assert head(features).shape == server_half(features).shape
