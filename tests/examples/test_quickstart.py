"""The quickstart: LeNet in two halves, trained on digits with and without a split."""

import io
import logging
import random
import re
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, RecordDict

from flwr_splitfc import JoinedModel
from splitquickstart.client_app import app as client_app
from splitquickstart.server_app import app as server_app
from splitquickstart.task import DeviceHalf, ServerHalf
from tests.local_grid import LocalGrid

APP = Path(__file__).parents[2] / "examples" / "quickstart"
OWN = tomllib.loads((APP / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
DIGITS = {
    "dataset": "digits",
    "num-devices": 4,
    "num-server-rounds": 12,
    "local-epochs": 2,
}


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (1, 28, 28)])
def test_images_of_any_size_become_400_features(shape: tuple[int, ...]) -> None:
    features = DeviceHalf()(torch.rand(5, *shape))
    assert features.shape == (5, 16, 5, 5)
    assert ServerHalf()(features).shape == (5, 10)


def test_the_whole_is_lenet() -> None:
    layers = JoinedModel(DeviceHalf(), ServerHalf()).parameters()
    weights = [tuple(weight.shape) for weight in layers if weight.ndim > 1]
    convolutions = [(6, 3, 5, 5), (16, 6, 5, 5)]
    assert weights == [*convolutions, (120, 400), (84, 120), (10, 84)]


def test_pixels_lie_between_minus_one_and_one() -> None:
    half = DeviceHalf()
    colours = 2 * torch.rand(4, 3, 32, 32) - 1
    assert torch.allclose(half((colours + 1) / 2), half.layers(colours), atol=1e-5)


@contextmanager
def logged() -> Iterator[io.StringIO]:
    """What the app logs meanwhile."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    logging.getLogger("flwr").addHandler(handler)
    try:
        yield text
    finally:
        logging.getLogger("flwr").removeHandler(handler)


def run(**settings: Any) -> str:
    """The log of a run in this process, with the app's settings and other ones."""
    config = {**OWN["config"], **settings}
    grid = LocalGrid(client_app, config["num-devices"], workers=0)
    for context in grid.contexts.values():
        context.run_config = config
    random.seed(config["seed"])  # by which Flower draws devices
    with logged() as text:
        server_app(grid, Context(1, 1, {}, RecordDict(), config))
    return text.getvalue()


def accuracies(log: str) -> list[float]:
    """The server's, after each round."""
    found = re.findall(r"MetricRecord: {'loss': [\d.]+, 'accuracy': ([\d.]+)}", log)
    return [float(accuracy) for accuracy in found]


@pytest.mark.parametrize("strategy", ["splitfc", "split-learning", "fedavg"])
def test_each_strategy_trains_the_same_app(strategy: str) -> None:
    log = run(strategy=strategy, **DIGITS)
    found = accuracies(log)
    assert len(found) == DIGITS["num-server-rounds"]
    # 0.93 to 0.99 over ten seeds, of the split strategies with one thread and with two
    assert found[-1] > 0.46
    assert "'eval_acc'" in log  # what devices found


def test_a_wrong_setting_is_named() -> None:
    with pytest.raises(
        ValueError, match="strategy is 'fedprox', wanted one of splitfc"
    ):
        run(strategy="fedprox", **DIGITS)
    with pytest.raises(ValueError, match="local-epochs is 0, wanted 1 or more"):
        run(**{**DIGITS, "local-epochs": 0})
