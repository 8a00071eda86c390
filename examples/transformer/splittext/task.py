"""The model's parts as the run-config says, a device's text, and evaluation."""

from dataclasses import dataclass

from flwr.app import Context
from torch import nn

from flwr_splitfc import split_at
from flwr_splitfc.batches import Batches, evaluate, turn_batches
from flwr_splitfc.settings import check_least, read_settings
from splittext.model import DeviceHalf, server_half
from splittext.text import TextSettings, device_windows, held_out_windows


@dataclass(frozen=True)
class ModelSettings:
    """The model, in a run-config.

    Parameters
    ----------
    width : int
        Numbers that stand for a character, C.
    heads : int
        Heads of attention, which share them.
    """

    width: int = 64
    heads: int = 4

    def __post_init__(self) -> None:
        check_least(self, width=1, heads=1)
        if self.width % self.heads:
            raise ValueError(
                f"width is {self.width}, wanted a multiple of heads, {self.heads}"
            )


def make_device_half(context: Context) -> DeviceHalf:
    """Return the embeddings and the first blocks."""
    model = read_settings(ModelSettings, context.run_config)
    text = read_settings(TextSettings, context.run_config)
    return DeviceHalf(text.context_length, model.width, model.heads)


def make_server_half(context: Context) -> nn.Module:
    """Return the other blocks and the last layers.

    Where the last layers are the devices' (``u-shaped``) they are left out.
    """
    rest = _server_half(context)
    if not context.run_config.get("u-shaped"):
        return rest
    middle, _ = split_at(rest, -2)
    return middle


def make_tail(context: Context) -> nn.Module:
    """Return the last layers."""
    _, tail = split_at(_server_half(context), -2)
    return tail


def make_auxiliary(context: Context) -> nn.Module:
    """Return other last layers for the features, for device halves to learn from."""
    return make_tail(context)


def _server_half(context: Context) -> nn.Module:
    model = read_settings(ModelSettings, context.run_config)
    return server_half(model.width, model.heads)


def load_data(context: Context) -> tuple[Batches, Batches]:
    """Return a device's topics, to train on and to evaluate on, too.

    The server tests on other topics.
    """
    device = int(context.node_config["partition-id"])
    return turn_batches(device_windows(context.run_config, device), context.run_config)


def evaluate_on_test_topics(model: nn.Module, context: Context) -> dict[str, float]:
    """Return the whole model's loss and accuracy on the topics that no device has.

    Every character counts.
    """
    return evaluate(model, held_out_windows(context.run_config), batch_size=256)
