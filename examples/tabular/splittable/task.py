"""The model's two halves, a device's patients, and evaluation."""

import torch
from flwr.app import Context
from torch import nn
from torch.nn import functional as F

from flwr_splitfc import AuxiliaryHead, split_at
from flwr_splitfc.batches import Batches, turn_batches
from splittable.diabetes import device_patients, load_patients

COLUMNS = 512  # at the cut


def make_device_half() -> nn.Module:
    """Return one wide layer: measurements (B, 10) to features (B, 512)."""
    return nn.Sequential(nn.Linear(10, COLUMNS), nn.ReLU())


def make_server_half(context: Context) -> nn.Module:
    """Return two layers: features to one number (B, 1).

    Where the last layer is the devices' (``u-shaped``) it is left out.
    """
    whole = _server_half()
    if not context.run_config.get("u-shaped"):
        return whole
    middle, _ = split_at(whole, -2)
    return middle


def make_tail() -> nn.Module:
    """Return the last layer."""
    _, tail = split_at(_server_half(), -2)
    return tail


def make_auxiliary() -> AuxiliaryHead:
    """Return a head that guesses from the features, for device halves to learn from."""
    return AuxiliaryHead((COLUMNS,), 1)


def _server_half() -> nn.Sequential:
    return nn.Sequential(nn.Linear(COLUMNS, 64), nn.ReLU(), nn.Linear(64, 1))


def load_data(context: Context) -> tuple[Batches, Batches]:
    """Return a device's patients, to train on and to evaluate on, too.

    The test set is the server's.
    """
    device = int(context.node_config["partition-id"])
    return turn_batches(device_patients(context.run_config, device), context.run_config)


def evaluate_on_test_set(model: nn.Module, context: Context) -> dict[str, float]:
    """Return the whole model's squared error on the test set, and R squared.

    R squared is the share of the variance that the model explains.
    """
    _, test = load_patients()
    device = next(model.parameters()).device
    model.eval()
    with torch.inference_mode():
        guesses = model(test.measurements.to(device)).cpu()
    model.train()
    loss = F.mse_loss(guesses, test.progressions).item()
    variance = test.progressions.var(correction=0).item()
    return {"loss": loss, "r2": 1 - loss / variance}
