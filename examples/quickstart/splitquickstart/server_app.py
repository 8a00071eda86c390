"""The server's side: its half of the model, the loss, an optimizer, evaluation."""

from functools import partial
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, Strategy
from torch import nn

from flwr_splitfc import JoinedModel, RoundRobin, SplitFC, SplitLearning
from flwr_splitfc.settings import read_settings
from flwr_splitfc.vision import evaluate_on_test_set
from splitquickstart.task import DeviceHalf, ServerHalf, Settings

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train with the run-config's strategy."""
    settings = read_settings(Settings, context.run_config)
    torch.manual_seed(settings.seed)
    whole = JoinedModel(DeviceHalf(), ServerHalf())
    whole.to("cuda" if torch.cuda.is_available() else "cpu")
    strategy = make_strategy(settings, whole.server)
    on_devices = whole.device if isinstance(strategy, SplitLearning) else whole

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        on_devices.load_state_dict(arrays.to_torch_state_dict())
        return MetricRecord({**evaluate_on_test_set(whole, context)})

    strategy.start(
        grid,
        initial_arrays=ArrayRecord(on_devices.state_dict()),
        num_rounds=settings.num_server_rounds,
        evaluate_fn=evaluate,
    )


def make_strategy(settings: Settings, server_half: nn.Module) -> Strategy:
    """Return a strategy for halves, or Flower's own for the whole model."""
    sampling: dict[str, Any] = {
        "min_train_nodes": 1,
        "fraction_evaluate": settings.fraction_evaluate,
        "min_evaluate_nodes": 1,
        "min_available_nodes": settings.num_devices,
    }
    if settings.strategy == "fedavg":
        return FedAvg(**sampling)
    split = SplitFC if settings.strategy == "splitfc" else SplitLearning
    return split(
        server_model=server_half,
        loss_fn=nn.CrossEntropyLoss(),
        optimizer=partial(torch.optim.SGD, lr=settings.learning_rate, momentum=0.9),
        devices=RoundRobin(**sampling),
        seed=settings.seed,
    )
