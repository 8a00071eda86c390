"""The server's side: a strategy, the server half, and the test set."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAdam, FedAvg, FedProx, Strategy
from torch import nn

from flwr_splitfc import JoinedModel, RoundRobin, SplitFC, SplitFedV1, SplitFedV2, SplitLearning, cut_codec
from flwr_splitfc.codec import codec_settings
from flwr_splitfc.exchange import Ledger, MeteredGrid
from flwr_splitfc.report import Progress, run_record
from splitmnist.task import RunConfig, datasets_of, device_half, evaluate, server_half

SPLIT: dict[str, type[SplitLearning]] = {
    "splitfc": SplitFC,
    "split-learning": SplitLearning,
    "splitfed-v1": SplitFedV1,
    "splitfed-v2": SplitFedV2,
}
UNSPLIT: dict[str, Callable[..., Strategy]] = {
    "fedavg": FedAvg,
    "fedprox": partial(FedProx, proximal_mu=0.1),
    "fedadam": partial(FedAdam, eta=1e-2, tau=1e-3),
}

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
    name = str(config["strategy"])
    folder = Path(str(config["results-dir"])).expanduser().resolve()
    about: dict[str, Any] = {"seed": config["seed"]}
    if name in UNSPLIT:
        progress = run_unsplit(grid, config, options)
    elif name in SPLIT:
        strategy = split_strategy(config, folder)
        progress = run_split(grid, config, options, strategy)
        about |= {"codec": strategy.codec.config(), "payload_digest": strategy.ledger.digest()}
    else:
        raise ValueError(f"strategy is {name!r}, wanted one of {', '.join([*SPLIT, *UNSPLIT])}")

    path = folder / "results.json"
    progress.write(path, **run_record(config, **about))
    logger.info("\n%s\n\nWrote %s", progress.table(), path)


def split_strategy(config: RunConfig, folder: Path) -> SplitLearning:
    """The strategy that the run-config names; both halves and their merge go to `folder` at the end."""
    checkpoint = str(config["checkpoint-dir"])
    settings: dict[str, Any] = {
        "server_model": server_half(datasets_of(config)[1].spec, int(config["seed"])),
        "loss_fn": nn.CrossEntropyLoss(),
        "optimizer": partial(torch.optim.Adam, lr=float(config["learning-rate"])),
        "devices": sampling(str(config["devices"]), config),
        "evaluate_every": int(config["evaluate-every"]),
        "optimizer_state": config["optimizer-state"],
        "seed": int(config["seed"]),
        "checkpoint": Path(checkpoint).expanduser().resolve() if checkpoint else None,
        "save_to": folder,
    }
    name = str(config["strategy"])
    cut: dict[str, Any] = {key.replace("-", "_"): config[key] for key in ("uplink-bits", "downlink-bits", "reduction")}
    if name != "splitfc":
        codec = str(config["codec"])
        cut = {"codec": cut_codec(codec, **{key: cut[key] for key in cut if key in codec_settings(codec)})}
    return SPLIT[name](**settings, **cut)


def run_split(grid: Grid, config: RunConfig, options: dict[str, Any], strategy: SplitLearning) -> Progress:
    """Split learning: devices have the first layers only."""
    test = datasets_of(config)[1]

    def evaluate_joined(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        model = strategy.joined_model(device_half(test.spec, 0), arrays)
        return MetricRecord({**evaluate(model, test)})

    initial = ArrayRecord(device_half(test.spec, int(config["seed"])).state_dict())
    strategy.start(grid, initial, evaluate_fn=evaluate_joined, **options)
    return strategy.progress


def run_unsplit(grid: Grid, config: RunConfig, options: dict[str, Any]) -> Progress:
    """Flower's own strategies: devices have the whole model. The grid counts its bytes for the same table."""
    test, seed = datasets_of(config)[1], int(config["seed"])
    joined = JoinedModel(device_half(test.spec, seed), server_half(test.spec, seed))
    ledger = Ledger()
    progress = Progress(options["num_rounds"], ledger, evaluate_every=int(config["evaluate-every"]))

    def evaluate_joined(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        joined.load_state_dict(arrays.to_torch_state_dict())
        return MetricRecord({**evaluate(joined, test)})

    sampling(str(config["strategy"]), config).start(
        MeteredGrid(grid, ledger),
        ArrayRecord(joined.state_dict()),
        evaluate_fn=progress.watch(evaluate_joined),
        **options,
    )
    return progress


def sampling(name: str, config: RunConfig) -> Strategy:
    """Who trains in a round and how what they trained is combined."""
    everyone: dict[str, Any] = {
        "min_available_nodes": int(config["num-devices"]),
        "fraction_evaluate": float(bool(config["evaluate-on-devices"])),
    }
    if name == "round-robin":
        return RoundRobin(**everyone)
    if name not in UNSPLIT:
        raise ValueError(f"devices is {name!r}, wanted one of {', '.join(['round-robin', *UNSPLIT])}")
    return UNSPLIT[name](fraction_train=float(config["fraction-train"]), **everyone)
