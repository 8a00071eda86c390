"""The device's side: its half of the model, its share of the data, and an optimizer."""

from functools import partial

import torch
from flwr.app import Context
from torch import nn

from flwr_splitfc import SplitClientApp
from splitmnist.task import Batches, datasets_of, device_data, device_half, server_half, train_loader


def load_data(context: Context) -> tuple[Batches, Batches]:
    """This device's share to train on, and to evaluate on, too: the test set is the server's."""
    config = context.run_config
    share = device_data(config, int(context.node_config["partition-id"]))
    steps, rows = int(config["steps-per-turn"]), int(config["batch-size"])
    return train_loader(share, rows, steps), train_loader(share, rows)


def make_device_half(context: Context) -> nn.Module:
    """The device half for the run's data set; the message's arrays replace its weights."""
    return device_half(datasets_of(context.run_config)[0].spec, int(context.run_config["seed"]))


def make_server_half(context: Context) -> nn.Module:
    """The server half, which a device needs only to train the whole model (FedAvg)."""
    return server_half(datasets_of(context.run_config)[0].spec, int(context.run_config["seed"]))


app = SplitClientApp(
    model=make_device_half,
    load_data=load_data,
    optimizer=partial(torch.optim.Adam, lr=1e-3),  # the run-config's learning rate comes with each message
    server_model=make_server_half,
    loss_fn=nn.CrossEntropyLoss(),
)
