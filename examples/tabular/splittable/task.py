"""The model's two halves, a device's patients, and evaluation."""

import torch
from flwr.app import Context
from torch import nn
from torch.nn import functional as F

from flwr_splitfc import split_at
from flwr_splitfc.batches import Batches, turn_batches
from splittable.diabetes import device_patients, load_patients

COLUMNS = 512  # at the cut


def make_device_half() -> nn.Module:
    """One wide layer: measurements (B, 10) to features (B, 512)."""
    return nn.Sequential(nn.Linear(10, COLUMNS), nn.ReLU())


def make_server_half(context: Context) -> nn.Module:
    """Two layers, to one number (B, 1); without the last where it is the devices' (``u-shaped``)."""
    whole = _server_half()
    return split_at(whole, -2)[0] if context.run_config.get("u-shaped") else whole


def make_tail() -> nn.Module:
    """The last layer."""
    return split_at(_server_half(), -2)[1]


def _server_half() -> nn.Sequential:
    return nn.Sequential(nn.Linear(COLUMNS, 64), nn.ReLU(), nn.Linear(64, 1))


def load_data(context: Context) -> tuple[Batches, Batches]:
    """A device's patients, to train on and to evaluate on, too: the test set is the server's."""
    share = device_patients(
        context.run_config, int(context.node_config["partition-id"])
    )
    return turn_batches(share, context.run_config)


def evaluate_on_test_set(model: nn.Module, context: Context) -> dict[str, float]:
    """Squared error of the whole model on the test set, and how much of the variance it explains (R squared)."""
    test = load_patients()[1]
    device = next(model.parameters()).device
    with torch.inference_mode():
        guesses = model.eval()(test.measurements.to(device)).cpu()
    model.train()
    loss = F.mse_loss(guesses, test.progressions).item()
    return {"loss": loss, "r2": 1 - loss / test.progressions.var(correction=0).item()}
