"""The model in two halves, a device's pictures, and evaluation."""

from functools import partial

from flwr.app import Context
from torch import nn
from torchvision.models import mobilenet_v3_small

from flwr_splitfc import AuxiliaryHead, split_at
from flwr_splitfc.vision import Batches, evaluate, turn_batches
from splitceleba.faces import decoded_test_set, device_faces

CUT = "features.3"  # 24 x 8 x 8 for pictures of 64 x 64
SECOND_CUT = "classifier.2"  # of U-shaped split learning, before the last layer


def halves() -> tuple[nn.Module, nn.Module]:
    """Return torchvision's MobileNetV3-small, cut after its third block.

    It has two classes: with the attribute, or without.
    GroupNorm takes the place of BatchNorm, whose batch statistics would be those of a
    device's few celebrities.
    """
    eight_groups = partial(nn.GroupNorm, 8)
    return split_at(mobilenet_v3_small(num_classes=2, norm_layer=eight_groups), CUT)


def make_device_half() -> nn.Module:
    """Return the early blocks."""
    device_half, _ = halves()
    return device_half


def make_server_half(context: Context) -> nn.Module:
    """Return the rest.

    Where the last layer is the devices' (``u-shaped``) it is left out.
    """
    _, rest = halves()
    if not context.run_config.get("u-shaped"):
        return rest
    middle, _ = split_at(rest, SECOND_CUT)
    return middle


def make_tail() -> nn.Module:
    """Return the last layer."""
    _, rest = halves()
    _, tail = split_at(rest, SECOND_CUT)
    return tail


def make_auxiliary() -> AuxiliaryHead:
    """Return a head that scores the features, for device halves to learn from."""
    return AuxiliaryHead((24, 8, 8), 2)


def load_data(context: Context) -> tuple[Batches, Batches]:
    """Return a device's pictures, to train on and to evaluate on, too.

    The test split is the server's.
    """
    device = int(context.node_config["partition-id"])
    return turn_batches(device_faces(context.run_config, device), context.run_config)


def evaluate_on_test_split(model: nn.Module, context: Context) -> dict[str, float]:
    """Return the whole model's loss and accuracy on CelebA's test split."""
    return evaluate(model, decoded_test_set(context.run_config))
