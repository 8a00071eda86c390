"""The device's side: its half of the model, its pictures, and an optimizer."""

import torch
from torch import nn

from flwr_splitfc import SplitClientApp
from splitceleba.task import (
    load_data,
    make_auxiliary,
    make_device_half,
    make_server_half,
    make_tail,
)

app = SplitClientApp(
    model=make_device_half,
    load_data=load_data,
    # the run-config's learning rate comes with each message
    optimizer=torch.optim.Adam,
    server_model=make_server_half,  # only to train the whole model (FedAvg)
    tail=make_tail,  # used where the run-config says u-shaped
    auxiliary=make_auxiliary,  # used where it says decoupled
    loss_fn=nn.CrossEntropyLoss(),
)
