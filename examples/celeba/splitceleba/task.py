"""The model in two halves, a device's pictures, and evaluation."""

from functools import partial

from flwr.app import Context
from torch import nn
from torchvision.models import mobilenet_v3_small

from flwr_splitfc import split_at
from flwr_splitfc.vision import Batches, evaluate, turn_batches
from splitceleba.faces import decoded_test_set, device_faces

CUT = "features.3"  # 24 x 8 x 8 for pictures of 64 x 64
SECOND_CUT = "classifier.2"  # of U-shaped split learning, before the last layer


def halves() -> tuple[nn.Module, nn.Module]:
    """torchvision's MobileNetV3-small with two classes, cut after its third block.

    GroupNorm takes the place of BatchNorm, whose batch statistics would be those of a
    device's few celebrities.
    """
    return split_at(
        mobilenet_v3_small(num_classes=2, norm_layer=partial(nn.GroupNorm, 8)), CUT
    )


def make_device_half() -> nn.Module:
    """The early blocks."""
    return halves()[0]


def make_server_half(context: Context) -> nn.Module:
    """The rest, without the last layer where that is the devices' (``u-shaped``)."""
    rest = halves()[1]
    return split_at(rest, SECOND_CUT)[0] if context.run_config.get("u-shaped") else rest


def make_tail() -> nn.Module:
    """The last layer."""
    return split_at(halves()[1], SECOND_CUT)[1]


def load_data(context: Context) -> tuple[Batches, Batches]:
    """A device's pictures, to train on and to evaluate on, too: the test split is the server's."""
    share = device_faces(context.run_config, int(context.node_config["partition-id"]))
    return turn_batches(share, context.run_config)


def evaluate_on_test_split(model: nn.Module, context: Context) -> dict[str, float]:
    """Loss and accuracy of the whole model on CelebA's test split."""
    return evaluate(model, decoded_test_set(context.run_config))
