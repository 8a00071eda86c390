"""An app with a table of columns, of which most are raw and 1,000 times as large."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context
from torch import Tensor, nn

from flwr_splitfc import SplitClientApp, SplitServerApp
from flwr_splitfc.model.structures import Structure
from tests.apps.server_runs import results_of

LEARNED, RAW = 4, 6
WIDTH = 4 + RAW  # at the cut
OUTPUT = 16  # of the server half, where devices have the last layers


def settings_of(context: Context) -> dict[str, Any]:
    usual = {"normalises": True, "in-parts": False, "dropout": 0.0}
    return {**usual, **context.run_config}


class DeviceHalf(nn.Module):
    """Sends what it learned beside the raw columns, in one tensor or in two."""

    def __init__(self, context: Context) -> None:
        super().__init__()
        settings = settings_of(context)
        self.layer = nn.Linear(LEARNED, 4)
        self.dropout = nn.Dropout(settings["dropout"])
        self.in_parts = settings["in-parts"]

    def forward(self, x: Tensor) -> Structure:
        learned = self.dropout(torch.tanh(self.layer(x[:, :LEARNED])))
        if self.in_parts:
            return {"learned": learned, "raw": x[:, LEARNED:]}
        return torch.cat([learned, x[:, LEARNED:]], dim=1)


class Joined(nn.Module):
    """Joins what comes in parts."""

    def forward(self, features: Structure) -> Tensor:
        if isinstance(features, Tensor):
            return features
        return torch.cat(list(features.values()), dim=1)


def server_half(context: Context) -> nn.Module:
    """One for which small columns matter as much as large ones, or does not."""
    first = nn.BatchNorm1d(WIDTH) if settings_of(context)["normalises"] else Scaled()
    outputs = OUTPUT if context.run_config["u-shaped"] else 2
    return nn.Sequential(Joined(), first, nn.Linear(WIDTH, outputs))


class Scaled(nn.Module):
    """Makes all columns smaller alike: what counts are the large ones."""

    def forward(self, x: Tensor) -> Tensor:
        return x / 1000


def load_data(context: Context) -> Any:
    """Two batches of 32 and a last one of 4."""
    draw = torch.Generator().manual_seed(int(context.node_config["partition-id"]))
    inputs = torch.randn(68, LEARNED + RAW, generator=draw)
    labels = (inputs[:, 0] + inputs[:, LEARNED] > 0).long()
    inputs[:, LEARNED:] *= 1000
    batches = list(zip(inputs.split(32), labels.split(32), strict=True))
    return batches, batches


adam = partial(torch.optim.Adam, lr=1e-3)
loss_fn = nn.CrossEntropyLoss()
tail = partial(nn.Linear, OUTPUT, 2)
server_app = SplitServerApp(DeviceHalf, server_half, loss_fn, adam, tail=tail)
client_app = SplitClientApp(DeviceHalf, load_data, adam, loss_fn=loss_fn, tail=tail)


def make_run(folder: Path, **settings: Any) -> Path:
    """Train for three rounds; return the folder."""
    config = {"num-devices": 3, "num-rounds": 3, "results-dir": str(folder)}
    usual = {"strategy": "split-learning", "u-shaped": False}
    results_of(server_app, client_app, {**config, **usual, **settings})
    return folder


def make_app(folder: Path) -> Path:
    """Write the app's `pyproject.toml`; return its folder."""
    folder.mkdir()
    (folder / "pyproject.toml").write_text(
        """\
[project]
name = "table"
version = "1.0.0"

[tool.flwr.app]
publisher = "tests"

[tool.flwr.app.components]
serverapp = "tests.leakage.table_app:server_app"
clientapp = "tests.leakage.table_app:client_app"

[tool.flwr.app.config]
"""
    )
    return folder
