"""Every example's model cut in three: what devices and server have of it is the whole, and fits."""

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


@pytest.mark.parametrize(
    ("task", "inputs", "settings"),
    TASKS,
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_three_parts_are_the_whole(
    task: Any,
    inputs: tuple[torch.Tensor],
    settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if task is splitcifar.task:
        data = type("Data", (), {"spec": DatasetSpec(3, 32, 10)})
        monkeypatch.setattr(task, "datasets_of", lambda config: (data, data))

    def part(make: Callable[..., nn.Module], u_shaped: bool) -> nn.Module:
        return make_half(
            make, Context(1, 1, {}, RecordDict(), {"u-shaped": u_shaped, **settings})
        )

    head, whole = part(task.make_device_half, False), part(task.make_server_half, False)
    middle, tail = part(task.make_server_half, True), part(task.make_tail, True)
    assert shapes(middle, tail) == shapes(whole)
    assert shapes(tail)
    assert tail(middle(head(*inputs))).shape == whole(head(*inputs)).shape
