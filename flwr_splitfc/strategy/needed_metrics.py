"""Metrics that a strategy computes with, beside the one that it weights replies by."""

from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    QFedAvg,
    Strategy,
)

from flwr_splitfc.exchange.server.half.step_checks import MOST_NORM
from flwr_splitfc.strategy.innermost import layers

_NORM_BIT = "norm_bit"  # of Flower's adaptiveclipping_mod


def needed_metrics(devices: Strategy) -> dict[str, float]:
    """Return the metrics' names, and the most that each may be; the least is 0.

    >>> from flwr.serverapp.strategy import FedAvg
    >>> needed_metrics(FedAvg()), needed_metrics(QFedAvg(client_learning_rate=0.1))
    ({}, {'train_loss': 1e+18})
    """
    needed = {}
    for layer in layers(devices):
        if isinstance(layer, QFedAvg):
            # it raises the loss to the power of q, and multiplies arrays by that
            needed[layer.train_loss_key] = MOST_NORM ** (1 / max(layer.q, 1.0))
        if isinstance(layer, DifferentialPrivacyClientSideAdaptiveClipping):
            needed[_NORM_BIT] = 1.0
    return needed
