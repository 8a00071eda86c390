"""The model's two halves."""

from flwr.app import Context
from torch import nn

from flwr_splitfc import split_at
from flwr_splitfc.vision import datasets_of


class DeviceHalf(nn.Sequential):
    """Two convolutions: images (B, C, H, W) to features (B, 32, S, S), of which `cut_size` is the S.

    Images below 16 pixels are not pooled. An 8 x 8 digit then has the cut of a 28 x 28
    one, 32 x 6 x 6; pooled twice it would have 32 x 1 x 1, too few columns to choose
    from.
    """

    def __init__(self, in_channels: int = 1, image_size: int = 28) -> None:
        pool = _pool(image_size)
        super().__init__(
            nn.Conv2d(in_channels, 16, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(pool),
            nn.Conv2d(16, 32, kernel_size=3),
            nn.ReLU(),
            nn.MaxPool2d(pool),
        )


class ServerHalf(nn.Sequential):
    """Two linear layers: the features of `DeviceHalf` to logits (B, num_classes)."""

    def __init__(self, image_size: int = 28, num_classes: int = 10) -> None:
        super().__init__(
            nn.Flatten(),
            nn.Linear(32 * cut_size(image_size) ** 2, 128),
            nn.ReLU(),
            nn.Linear(128, num_classes),
        )


def _pool(image_size: int) -> int:
    return 2 if image_size >= 16 else 1


def cut_size(image_size: int) -> int:
    """Height and width of the feature maps at the cut; 6 for digits and MNIST, 7 for CIFAR-10."""
    pool = _pool(image_size)
    size = (image_size // pool - 2) // pool
    if size < 1:
        raise ValueError(
            f"image_size is {image_size}: the device half needs images of 3 x 3 pixels or more"
        )
    return size


def make_device_half(context: Context) -> DeviceHalf:
    """The device half for the run's data set."""
    spec = datasets_of(context.run_config)[0].spec
    return DeviceHalf(spec.channels, spec.image_size)


def make_server_half(context: Context) -> nn.Module:
    """The server half for the run's data set, without the last layer where that is the devices' (``u-shaped``)."""
    whole = _server_half(context)
    return split_at(whole, -2)[0] if context.run_config.get("u-shaped") else whole


def make_tail(context: Context) -> nn.Module:
    """The last layer."""
    return split_at(_server_half(context), -2)[1]


def _server_half(context: Context) -> ServerHalf:
    spec = datasets_of(context.run_config)[0].spec
    return ServerHalf(spec.image_size, spec.num_classes)
