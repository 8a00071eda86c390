"""A run with a checkpoint, as a process that can be killed: python -m tests.strategy.killed_run FOLDER OUT.

It prints "ready", and the number of each round when that is over.
"""

import json
import sys
from functools import partial
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from torch import nn

from flwr_splitfc import RoundRobin, SplitClientApp, SplitFC
from flwr_splitfc.callbacks import Callback, RunSoFar
from flwr_splitfc.run.rounds import Round
from tests.halves import DeviceHalf, batches, seeded
from tests.local_grid import LocalGrid
from tests.measured import MEASURED

ROUNDS = 60


def server_half() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 16),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(16, 4),
    )


class TellRounds(Callback):
    def on_round(self, done: Round, run: RunSoFar) -> None:
        print(done.round, flush=True)


def main(checkpoint: Path, out: Path) -> None:
    torch.set_num_threads(1)
    data = {i: batches(3, seed=i) for i in range(3)}
    app = SplitClientApp(
        DeviceHalf,
        lambda context: (data[context.node_config["partition-id"]],) * 2,
        partial(torch.optim.Adam, lr=1e-2),
    )
    strategy = SplitFC(
        seeded(server_half),
        nn.CrossEntropyLoss(),
        partial(torch.optim.Adam, lr=1e-2),
        uplink_bits=2,
        downlink_bits=2,
        reduction=4,
        devices=RoundRobin(min_available_nodes=3),
        evaluate_every=10,
        accumulate_steps=2,
        scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=50, gamma=0.9),
        device="cpu",
        checkpoint=checkpoint,
        callbacks=[TellRounds()],
        save_to=out,
    )
    print("ready", flush=True)
    result = strategy.start(
        LocalGrid(app, 3),
        ArrayRecord(seeded(DeviceHalf).state_dict()),
        ROUNDS,
        train_config=ConfigRecord({"steps-per-turn": 3}),
        evaluate_fn=lambda server_round, arrays: MetricRecord(
            {"accuracy": server_round / ROUNDS}
        ),
    )
    train = {
        number: {key: value for key, value in metrics.items() if key not in MEASURED}
        for number, metrics in result.train_metrics_clientapp.items()
    }
    summary = {
        "digest": strategy.ledger.digest(),
        "train": train,
        "evaluated": list(result.evaluate_metrics_clientapp),
        "central": list(result.evaluate_metrics_serverapp),
        "rows": [row["round"] for row in strategy.progress.rows],
        "uplink": dict(strategy.ledger.total("train").uplink_bytes),
        "downlink": dict(strategy.ledger.total("train").downlink_bytes),
    }
    (out / "summary.json").write_text(json.dumps(summary, sort_keys=True))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
