"""Parts of a model and its training that are none: the message says what was wanted."""

from functools import partial
from typing import Any

import pytest
import torch
from flwr.serverapp.strategy import FedAvg
from torch import nn

from flwr_splitfc import SplitClientApp, SplitFC, SplitLearning, SplitServerApp
from tests.halves import DeviceHalf, ServerHalf

HALF = ServerHalf()
CROSS_ENTROPY = nn.CrossEntropyLoss()
SGD = partial(torch.optim.SGD, lr=0.1)
MADE = SGD(HALF.parameters())
STEP = partial(torch.optim.lr_scheduler.StepLR, step_size=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"server_model": ServerHalf}, "server_model is the class ServerHalf, not a"),
        ({"server_model": {}}, "server_model is a dict, wanted an nn.Module"),
        (
            {"loss_fn": nn.CrossEntropyLoss},
            "loss_fn is the class CrossEntropyLoss, not",
        ),
        ({"loss_fn": "cross-entropy"}, "loss_fn is a str, wanted a function: loss_fn"),
        ({"optimizer": MADE}, r"optimizer is a SGD, .*partial\(torch\.optim\.Adam"),
        ({"optimizer": CROSS_ENTROPY}, "optimizer is a CrossEntropyLoss, wanted"),
        ({"scheduler": STEP(MADE)}, "scheduler is a StepLR, wanted a function"),
        ({"devices": FedAvg}, "devices is <class .*FedAvg'>, wanted a strategy"),
        ({"devices": 3}, "devices is 3, wanted a strategy of flwr.serverapp.strategy"),
        ({"model_bits": "4"}, "weights: bits must be 2 to 16, or 32, got '4'"),
    ],
)
@pytest.mark.parametrize("strategy", [SplitFC, SplitLearning])
def test_of_a_strategy(
    strategy: type[SplitLearning], options: dict[str, Any], message: str
) -> None:
    right: dict[str, Any] = {
        "server_model": HALF,
        "loss_fn": CROSS_ENTROPY,
        "optimizer": SGD,
    }
    strategy(**right)
    with pytest.raises(ValueError, match=message):
        strategy(**{**right, **options})


def test_splitfc_makes_its_codec_itself() -> None:
    message = r"SplitFC makes its codec itself, .* SplitLearning\(codec=\.\.\.\)"
    with pytest.raises(ValueError, match=message):
        SplitFC(HALF, CROSS_ENTROPY, SGD, codec="float32")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"model": DeviceHalf()},
            "model is a DeviceHalf, wanted a function that makes",
        ),
        ({"optimizer": MADE}, "optimizer is a SGD, wanted a function that makes one"),
        ({"load_data": ([], [])}, r"load_data is a tuple, .*load_data\(context\)"),
        ({"server_model": HALF}, "server_model is a ServerHalf, wanted a function"),
        ({"tail": HALF}, r"tail is a ServerHalf, .* makes one: tail\(\), such as"),
        ({"auxiliary": HALF}, "auxiliary is a ServerHalf, wanted a function that"),
        (
            {"loss_fn": nn.CrossEntropyLoss},
            "loss_fn is the class CrossEntropyLoss, not",
        ),
        ({"metrics_fn": "accuracy"}, r"metrics_fn is a str, .*metrics_fn\(outputs, l"),
    ],
)
def test_of_a_client_app(options: dict[str, Any], message: str) -> None:
    right: dict[str, Any] = {
        "model": DeviceHalf,
        "load_data": lambda context: ([], []),
        "optimizer": SGD,
    }
    SplitClientApp(**right)
    with pytest.raises(ValueError, match=message):
        SplitClientApp(**{**right, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"model": DeviceHalf()},
            "model is a DeviceHalf, wanted a function that makes",
        ),
        ({"server_model": HALF}, "server_model is a ServerHalf, wanted a function"),
        ({"optimizer": MADE}, "optimizer is a SGD, wanted a function that makes one"),
        ({"tail": HALF}, "tail is a ServerHalf, wanted a function that makes one"),
        ({"auxiliary": HALF}, "auxiliary is a ServerHalf, wanted a function that"),
        (
            {"loss_fn": nn.CrossEntropyLoss},
            "loss_fn is the class CrossEntropyLoss, not",
        ),
        (
            {"evaluate": "x"},
            r"evaluate is a str, .*: evaluate\(joined_model, context\)",
        ),
        ({"callbacks": [1]}, r"callbacks is a list, .* such as lambda context: \["),
    ],
)
def test_of_a_server_app(options: dict[str, Any], message: str) -> None:
    right: dict[str, Any] = {
        "model": DeviceHalf,
        "server_model": ServerHalf,
        "loss_fn": CROSS_ENTROPY,
        "optimizer": torch.optim.Adam,
    }
    SplitServerApp(**right)
    with pytest.raises(ValueError, match=message):
        SplitServerApp(**{**right, **options})
