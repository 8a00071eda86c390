"""Runs of a `SplitServerApp` over three devices of this process."""

import json
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, RecordDict
from torch import nn

from flwr_splitfc import SplitClientApp, SplitServerApp
from tests.halves import DeviceHalf, ServerHalf, batches
from tests.local_grid import LocalGrid

CROSS_ENTROPY = nn.CrossEntropyLoss()
TEST_SET = batches(1, rows=200, seed=99)[0]
APP_OPTIONS = ("callbacks", "evaluate", "max_grad_norm")


def load_data(context: Context) -> Any:
    data = batches(5, rows=64, seed=context.node_config["partition-id"])
    return data, data


def accuracy(model: nn.Module, context: Context) -> dict[str, float]:
    x, y = TEST_SET
    with torch.no_grad():
        right = model.eval()(x).argmax(1) == y
    return {"accuracy": right.float().mean().item()}


def results_of(
    server: SplitServerApp,
    client: SplitClientApp,
    config: dict[str, Any],
    *,
    node_config: dict[str, Any] | None = None,
    workers: int = 1,
) -> dict[str, Any]:
    """The results.json of a run whose run-config both apps get."""
    grid = LocalGrid(client, 3, workers=workers)
    for context in grid.contexts.values():
        context.node_config.update(node_config or {})
        context.run_config = config
    server(grid, Context(1, 1, {}, RecordDict(), config))
    return json.loads((Path(config["results-dir"]) / "results.json").read_text())


def run(
    folder: Path,
    *,
    optimizer: Any = torch.optim.Adam,
    node_config: dict[str, Any] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """The results.json of a run.

    `options` are the run-config's, in snake case, or the server app's.
    """
    app_options: dict[str, Any] = {"evaluate": accuracy}
    config: dict[str, Any] = {"num-devices": 3, "results-dir": str(folder)}
    for name, value in options.items():
        if name in APP_OPTIONS:
            app_options[name] = value
        else:
            config[name.replace("_", "-")] = value
    server = SplitServerApp(
        DeviceHalf,
        lambda context: ServerHalf(),
        CROSS_ENTROPY,
        optimizer,
        **app_options,
    )
    client = SplitClientApp(
        DeviceHalf, load_data, optimizer, server_model=ServerHalf, loss_fn=CROSS_ENTROPY
    )
    return results_of(server, client, config, node_config=node_config)


def joined(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "joined.pt", weights_only=True)
