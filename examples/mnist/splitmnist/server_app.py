"""The server's side: a strategy, the server half, and the test set."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from torch import nn

from flwr_splitfc import JoinedModel, RoundRobin, SplitFC, SplitLearning, cut_codec
from flwr_splitfc.codec import codec_settings
from flwr_splitfc.exchange import Ledger, MeteredGrid
from flwr_splitfc.report import Progress
from splitmnist.task import RunConfig, datasets_of, device_half, evaluate, server_half

app = ServerApp()
logger = logging.getLogger("flwr")


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train as the run-config says, log the table and write ``results.json``."""
    config = context.run_config
    torch.set_num_threads(int(config["torch-threads"]))
    options: dict[str, Any] = {
        "num_rounds": int(config["num-rounds"]),
        "train_config": ConfigRecord({key: config[key] for key in ("learning-rate", "seed", "torch-threads")}),
        "evaluate_config": ConfigRecord({"torch-threads": config["torch-threads"]}),
    }
    name = config["strategy"]
    if name == "fedavg":
        progress = run_fedavg(grid, config, options)
    elif name in ("splitfc", "split-learning"):
        progress = run_split(grid, config, options)
    else:
        raise ValueError(f"strategy is {name!r}, wanted splitfc, split-learning or fedavg")

    path = Path(str(config["results-dir"])).expanduser().resolve() / "results.json"
    progress.write(path, run_config=dict(config), seed=config["seed"])
    logger.info("\n%s\n\nWrote %s", progress.table(), path)


def run_split(grid: Grid, config: RunConfig, options: dict[str, Any]) -> Progress:
    """Split learning: devices have the first layers only."""
    test = datasets_of(config)[1]
    settings: dict[str, Any] = {
        "server_model": server_half(test.spec, int(config["seed"])),
        "loss_fn": nn.CrossEntropyLoss(),
        "optimizer": partial(torch.optim.Adam, lr=float(config["learning-rate"])),
        "devices": sampling(config),
        "evaluate_every": int(config["evaluate-every"]),
        "optimizer_state": config["optimizer-state"],
        "seed": int(config["seed"]),
    }
    cut: dict[str, Any] = {key.replace("-", "_"): config[key] for key in ("uplink-bits", "downlink-bits", "reduction")}
    strategy: SplitLearning
    if config["strategy"] == "splitfc":
        strategy = SplitFC(**settings, **cut)
    else:
        name = str(config["codec"])
        codec = cut_codec(name, **{key: value for key, value in cut.items() if key in codec_settings(name)})
        strategy = SplitLearning(**settings, codec=codec)

    def evaluate_joined(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        model = strategy.joined_model(device_half(test.spec, 0), arrays)
        return MetricRecord({**evaluate(model, test)})

    initial = ArrayRecord(device_half(test.spec, int(config["seed"])).state_dict())
    strategy.start(grid, initial, evaluate_fn=evaluate_joined, **options)
    return strategy.progress


def run_fedavg(grid: Grid, config: RunConfig, options: dict[str, Any]) -> Progress:
    """Flower's own FedAvg: devices have the whole model. The grid counts its bytes for the same table."""
    test, seed = datasets_of(config)[1], int(config["seed"])
    joined = JoinedModel(device_half(test.spec, seed), server_half(test.spec, seed))
    ledger = Ledger()
    progress = Progress(options["num_rounds"], ledger, evaluate_every=int(config["evaluate-every"]))

    def evaluate_joined(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        joined.load_state_dict(arrays.to_torch_state_dict())
        return MetricRecord({**evaluate(joined, test)})

    sampling(config).start(
        MeteredGrid(grid, ledger),
        ArrayRecord(joined.state_dict()),
        evaluate_fn=progress.watch(evaluate_joined),
        **options,
    )
    return progress


def sampling(config: RunConfig) -> FedAvg:
    """Who trains in a round: a sample of the devices, or one after the other."""
    everyone: dict[str, Any] = {
        "min_available_nodes": int(config["num-devices"]),
        "fraction_evaluate": float(bool(config["evaluate-on-devices"])),
    }
    if config["devices"] == "fedavg":
        return FedAvg(fraction_train=float(config["fraction-train"]), **everyone)
    if config["devices"] == "round-robin":
        return RoundRobin(**everyone)
    raise ValueError(f"devices is {config['devices']!r}, wanted round-robin or fedavg")
