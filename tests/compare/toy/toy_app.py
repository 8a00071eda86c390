"""A Flower app as small as they come, for comparisons without a simulation engine."""

from functools import partial
from pathlib import Path

import torch
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from torch import nn

from flwr_splitfc import RoundRobin, SplitFC, answer_device_query, connect
from flwr_splitfc.run import run_record

client_app = ClientApp()
server_app = ServerApp()
client_app.query("split_device")(answer_device_query)


@client_app.train()
def train(message: Message, context: Context) -> Message:
    if context.run_config["mood"] == "ill":
        raise OSError("no data on this device")
    turn = int(context.state.config_records.get("turns", {"count": 0})["count"]) + 1
    context.state["turns"] = ConfigRecord({"count": turn})
    assert set(message.content) == {"arrays", "config"}, "as in a run of its own"
    model = nn.Linear(8, 8)
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    generator = torch.Generator().manual_seed(int(context.run_config["seed"]) + turn)
    with connect(message) as server:
        server.loss(
            model(torch.randn(32, 8, generator=generator)),
            torch.zeros(32, dtype=torch.int64),
        ).backward()
        metrics = server.metrics()
    arrays = ArrayRecord(model.state_dict())
    return Message(
        RecordDict({"arrays": arrays, "metrics": MetricRecord({**metrics})}),
        reply_to=message,
    )


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    torch.manual_seed(int(config["seed"]))
    strategy = SplitFC(
        nn.Linear(8, 2),
        nn.CrossEntropyLoss(),
        partial(torch.optim.SGD, lr=float(config["learning-rate"])),
        uplink_bits=float(config["uplink-bits"]),
        downlink_bits=float(config["downlink-bits"]),
        reduction=1.0,
        devices=RoundRobin(fraction_evaluate=0.0),
        seed=int(config["seed"]),
    )
    initial = ArrayRecord(nn.Linear(8, 8).state_dict())
    strategy.start(
        grid,
        initial,
        int(config["num-rounds"]),
        evaluate_fn=lambda *_: MetricRecord({"accuracy": 0.5}),
    )
    if config["mood"] != "lazy":
        path = Path(str(config["results-dir"])) / "results.json"
        strategy.progress.write(
            path, **run_record(config, payload_digest=strategy.ledger.digest())
        )
