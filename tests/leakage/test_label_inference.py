"""Labels from the gradients that the server gets where the last layers are devices'."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flwr_splitfc.leakage import LabelInference, infer_labels

CLASSES = 5


def gradients(last: nn.Module, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """Gradients by outputs (N, width) that say something of their labels."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (200,), generator=draw)
    outputs = torch.randn(200, width, generator=draw)
    outputs[torch.arange(200), labels % width] += 2.0
    outputs.requires_grad_()
    F.cross_entropy(last(outputs), labels).backward()
    assert outputs.grad is not None
    return outputs.grad, labels


def inferred(seed: int) -> LabelInference:
    torch.manual_seed(seed)
    last = nn.Linear(16, CLASSES)
    known = gradients(last, 16, 2 * seed)
    return infer_labels(known, gradients(last, 16, 2 * seed + 1))


def test_a_linear_last_layer_tells_labels_by_directions() -> None:
    """Ten seeds gave 1 by directions, and 0.17 to 0.23 for the commonest label."""
    found = inferred(0)
    assert found.majority < 0.35
    assert found.clusters > 0.98
    assert found.nearest > 0.98


def test_a_class_of_several_directions_is_told_by_the_nearest_known_one() -> None:
    """As behind deeper last layers: two directions a class, no two of them close."""
    directions = torch.eye(4)
    kinds = torch.arange(80) % 4
    labels = kinds % 2
    shrunk = torch.linspace(0.1, 1, 80)[:, None] * directions[kinds]
    found = infer_labels((shrunk[:40], labels[:40]), (shrunk[40:], labels[40:]))
    assert found.nearest == 1.0
    assert found.clusters < 1.0


@pytest.mark.parametrize("unused", [0, 3])
def test_scores_tell_labels_by_their_sign(unused: int) -> None:
    """Also where the output has entries of classes that nobody has."""
    last = nn.Identity()
    width = CLASSES + unused
    found = infer_labels(gradients(last, width, 1), gradients(last, width, 2))
    assert found.sign == 1.0
    few = infer_labels(*(gradients(nn.Linear(3, CLASSES), 3, seed) for seed in (1, 2)))
    assert few.sign is None


def test_gradients_that_are_all_alike_tell_nothing() -> None:
    labels = torch.tensor([1, 1, 0, 2])
    found = infer_labels((torch.ones(4, 3), labels), (torch.ones(4, 3), labels))
    assert found.clusters == found.majority == 0.5


@pytest.mark.parametrize("labels", [torch.rand(4), torch.zeros(4, 2).long()])
def test_labels_that_are_no_classes_are_refused(labels: Tensor) -> None:
    with pytest.raises(ValueError, match="a class index for each sample"):
        infer_labels((torch.rand(4, 3), labels), (torch.rand(4, 3), labels))
