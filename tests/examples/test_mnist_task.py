"""The example's model: two halves that fit, at the published cut."""

import pytest
import torch
from flwr.app import Context, RecordDict

from splitmnist.task import DeviceHalf, ServerHalf, make_device_half, make_server_half


@pytest.mark.parametrize(
    ("channels", "size", "cut"),
    [(1, 8, (32, 6, 6)), (1, 28, (32, 6, 6)), (3, 32, (32, 7, 7))],
)
def test_halves_fit(channels: int, size: int, cut: tuple[int, int, int]) -> None:
    features = DeviceHalf(channels, size)(torch.rand(5, channels, size, size))
    assert features.shape == (5, *cut)
    assert ServerHalf(size, num_classes=7)(features).shape == (5, 7)


def test_mnist_model_is_the_published_setting() -> None:
    shapes = [
        tuple(weight.shape)
        for half in (DeviceHalf(), ServerHalf())
        for weight in half.parameters()
    ]
    assert shapes == [
        (16, 1, 3, 3),
        (16,),
        (32, 16, 3, 3),
        (32,),
        (128, 1152),
        (128,),
        (10, 128),
        (10,),
    ]


def test_halves_are_made_for_the_runs_data_set() -> None:
    context = Context(1, 1, {}, RecordDict(), {"dataset": "digits"})
    assert make_server_half(context)(
        make_device_half(context)(torch.rand(5, 1, 8, 8))
    ).shape == (5, 10)


@pytest.mark.parametrize("image_size", [1, 2])
def test_images_too_small_for_a_cut(image_size: int) -> None:
    with pytest.raises(ValueError, match=f"image_size is {image_size}: .* 3 x 3"):
        ServerHalf(image_size)
