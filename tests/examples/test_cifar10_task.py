"""CIFAR-10's example: models in two halves, and augmentation."""

import pytest
import torch
from flwr.app import Context, RecordDict
from torch import nn

from flwr_splitfc.vision import DatasetSpec
from splitcifar import task
from splitcifar.task import (
    crop_and_flip,
    halves,
    load_augmented_data,
    make_device_half,
    make_server_half,
)

CIFAR = DatasetSpec(channels=3, image_size=32, num_classes=10)


@pytest.mark.parametrize(
    ("settings", "cut"),
    [
        ({"model": "vgg11"}, (128, 8, 8)),
        ({"model": "vgg11", "width": 0.25}, (32, 8, 8)),
        ({"model": "vgg11", "width": 0.01}, (8, 8, 8)),
        ({"model": "resnet18", "width": 0.5}, (64, 16, 16)),
        ({"model": "cnn"}, (64, 8, 8)),
        ({"model": "resnet18", "width": 0.125, "norm": "batch"}, (16, 16, 16)),
    ],
)
def test_halves_fit(
    settings: dict[str, str | float], cut: tuple[int, int, int]
) -> None:
    device, server = halves(CIFAR, settings)
    features = device(torch.rand(2, 3, 32, 32))
    assert features.shape == (2, *cut)
    assert server(features).shape == (2, 10)
    assert not device.state_dict().keys() & server.state_dict().keys()


@pytest.mark.parametrize(
    ("model", "convolutions", "parameters"),
    [("vgg11", 8, 9.2e6), ("resnet18", 17, 11.2e6)],
)
def test_models_are_those_of_the_name(
    model: str, convolutions: int, parameters: float
) -> None:
    layers = [
        layer for half in halves(CIFAR, {"model": model}) for layer in half.modules()
    ]
    kernels = [
        layer
        for layer in layers
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3)
    ]
    assert len(kernels) == convolutions
    found = sum(
        weight.numel() for layer in layers for weight in layer.parameters(recurse=False)
    )
    assert found == pytest.approx(parameters, rel=0.01)


@pytest.mark.parametrize(
    ("norm", "layer"), [("group", nn.GroupNorm), ("batch", nn.BatchNorm2d)]
)
def test_each_convolution_is_normalised(norm: str, layer: type[nn.Module]) -> None:
    for model, convolutions in (("vgg11", 8), ("resnet18", 17), ("cnn", 3)):
        layers = [
            one
            for half in halves(CIFAR, {"model": model, "norm": norm})
            for one in half.modules()
        ]
        assert sum(isinstance(one, layer) for one in layers) == convolutions


def test_other_images_of_32_pixels_or_more() -> None:
    device, server = halves(
        DatasetSpec(channels=1, image_size=48, num_classes=7), {"width": 0.125}
    )
    assert server(device(torch.rand(2, 1, 48, 48))).shape == (2, 7)
    with pytest.raises(
        ValueError, match="image_size is 28: the model needs 32 x 32 pixels or more"
    ):
        halves(DatasetSpec(1, 28, 10), {})


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"model": "vgg16"}, "model is 'vgg16', wanted one of vgg11, resnet18, cnn"),
        ({"norm": "layer"}, "norm is 'layer', wanted one of group, batch"),
        ({"width": 0}, "width is 0.0, wanted more than 0"),
        ({"width": "half"}, "width is 'half', wanted float"),
        ({"augment": 1}, "augment is 1, wanted bool"),
    ],
)
def test_keys_that_are_wrong_are_named(
    settings: dict[str, str | float], error: str
) -> None:
    with pytest.raises(ValueError, match=error):
        halves(CIFAR, settings)


def moved(
    image: torch.Tensor, down: int, right: int, mirrored: bool, margin: int = 4
) -> torch.Tensor:
    """Slow and obvious."""
    _, height, width = image.shape
    out = torch.zeros_like(image)
    for row in range(height):
        for column in range(width):
            y, x = (
                row + down - margin,
                (width - 1 - column if mirrored else column) + right - margin,
            )
            if 0 <= y < height and 0 <= x < width:
                out[:, row, column] = image[:, y, x]
    return out


def test_crop_and_flip_moves_each_image_by_itself() -> None:
    images = torch.rand(24, 3, 6, 5) + 1
    torch.manual_seed(3)
    shaken = crop_and_flip(images)
    assert shaken.shape == images.shape
    found = set()
    for image, result in zip(images, shaken, strict=True):
        ways = [(d, r, m) for d in range(9) for r in range(9) for m in (False, True)]
        (way,) = [way for way in ways if torch.equal(moved(image, *way), result)]
        found.add(way)
    assert {mirrored for *_, mirrored in found} == {False, True}
    assert len(found) > 15
    torch.manual_seed(3)
    assert torch.equal(crop_and_flip(images), shaken)


class GreyImages:
    """As torchvision's classes are called and read; 40 images of one grey."""

    def __init__(self, root: str, train: bool, download: bool) -> None:
        self.data, self.targets = (
            torch.full((40, 3, 32, 32), 51, dtype=torch.uint8),
            [i % 10 for i in range(40)],
        )


@pytest.mark.parametrize("augment", [True, False])
def test_devices_augment_what_they_train_on_if_the_key_says_so(
    augment: bool, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(task.__dict__, "GreyImages", GreyImages)
    config = {
        "dataset": "splitcifar.task.GreyImages",
        "data-dir": str(tmp_path),
        "augment": augment,
        "width": 0.125,
    }
    context = Context(
        1,
        1,
        {"partition-id": 1},
        RecordDict(),
        {**config, "steps-per-turn": 2, "batch-size": 16},
    )
    train, own = load_augmented_data(context)
    # black comes in at the border
    assert {bool((images == 0).any()) for images, _ in train} == {augment}
    assert all((images == 51 / 255).all() for images, _ in own)
    features = make_device_half(context)(next(iter(train))[0])
    assert make_server_half(context)(features).shape == (16, 10)
