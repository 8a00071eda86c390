"""The model's two halves."""

from flwr.app import Context
from torch import nn

from flwr_splitfc import AuxiliaryHead, split_at
from flwr_splitfc.vision import datasets_of


class DeviceHalf(nn.Sequential):
    """Two convolutions: images (B, C, H, W) to features (B, 32, S, S).

    `cut_size` gives S. Images below 16 pixels are not pooled. An 8 x 8 digit then has
    the cut of a 28 x 28 one, 32 x 6 x 6; pooled twice it would have 32 x 1 x 1, too few
    columns to choose from.
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
    """Two linear layers: the features of `DeviceHalf` to scores (B, num_classes)."""

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
    """Return height and width of the features: 6 for digits and MNIST, 7 for CIFAR-10.

    Raises
    ------
    ValueError
        If nothing would be left of the image.
    """
    pool = _pool(image_size)
    pooled_once = image_size // pool
    size = (pooled_once - 2) // pool  # the second convolution has no padding
    if size < 1:
        raise ValueError(
            f"image_size is {image_size}: "
            "the device half needs images of 3 x 3 pixels or more"
        )
    return size


def make_device_half(context: Context) -> DeviceHalf:
    """Return the device half for the run's data set."""
    train, _ = datasets_of(context.run_config)
    return DeviceHalf(train.spec.channels, train.spec.image_size)


def make_server_half(context: Context) -> nn.Module:
    """Return the server half for the run's data set.

    Where the last layer is the devices' (``u-shaped``) it is left out.
    """
    whole = _server_half(context)
    if not context.run_config.get("u-shaped"):
        return whole
    middle, _ = split_at(whole, -2)
    return middle


def make_tail(context: Context) -> nn.Module:
    """Return the last layer."""
    _, tail = split_at(_server_half(context), -2)
    return tail


def make_auxiliary(context: Context) -> AuxiliaryHead:
    """Return a head that scores the features, for device halves to learn from."""
    train, _ = datasets_of(context.run_config)
    size = cut_size(train.spec.image_size)
    return AuxiliaryHead((32, size, size), train.spec.num_classes)


def _server_half(context: Context) -> ServerHalf:
    train, _ = datasets_of(context.run_config)
    return ServerHalf(train.spec.image_size, train.spec.num_classes)
