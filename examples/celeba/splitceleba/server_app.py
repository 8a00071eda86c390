"""The server's side: its half of the model, the loss, an optimizer, evaluation."""

import torch
from torch import nn

from flwr_splitfc import SplitServerApp
from splitceleba.task import (
    evaluate_on_test_split,
    make_auxiliary,
    make_device_half,
    make_server_half,
    make_tail,
)

app = SplitServerApp(
    model=make_device_half,
    server_model=make_server_half,
    tail=make_tail,  # used where the run-config says u-shaped
    auxiliary=make_auxiliary,  # used where it says decoupled
    loss_fn=nn.CrossEntropyLoss(),
    optimizer=torch.optim.Adam,
    evaluate=evaluate_on_test_split,
)
