"""The strategies that a run-config names."""

from collections.abc import Callable
from functools import partial
from typing import Any

from flwr.serverapp.strategy import FedAdam, FedAvg, FedProx, Strategy

from flwr_splitfc.strategy import (
    RoundRobin,
    SplitFC,
    SplitFedV1,
    SplitFedV2,
    SplitLearning,
)

SPLIT: dict[str, type[SplitLearning]] = {
    "splitfc": SplitFC,
    "split-learning": SplitLearning,
    "splitfed-v1": SplitFedV1,
    "splitfed-v2": SplitFedV2,
}
"""The strategies of this package, by the values of the key ``strategy``."""

UNSPLIT: dict[str, Callable[..., Strategy]] = {
    "fedavg": FedAvg,
    "fedprox": partial(FedProx, proximal_mu=0.1),
    "fedadam": partial(FedAdam, eta=1e-2, tau=1e-3),
}
"""Flower's own, which train the whole model, or combine the device halves."""

DEFAULT_DEVICES = {
    "splitfc": "round-robin",
    "split-learning": "round-robin",
    "splitfed-v1": "fedavg",
    "splitfed-v2": "fedavg",
}
"""Who trains in a round where the key ``devices`` is empty, by split strategy."""


def sampling_strategy(
    name: str,
    *,
    fraction_train: float,
    evaluate_on_devices: bool,
    turns_at_once: int = 1,
) -> Strategy:
    """Return a strategy that says who trains in a round and how halves are combined.

    Parameters
    ----------
    name : str
        ``round-robin`` or a key of `UNSPLIT`.
    fraction_train : float
        The share of the devices that train in a round, unless they take turns.
    evaluate_on_devices : bool
        Whether all devices evaluate, or none.
    turns_at_once : int (default: 1)
        As in `RoundRobin`, where devices take turns.
    """
    # all devices were there when the run began; it goes on without those that die
    options: dict[str, Any] = {
        "min_available_nodes": 1,
        "min_evaluate_nodes": 1,
        "fraction_evaluate": float(evaluate_on_devices),
    }
    if name == "round-robin":
        return RoundRobin(turns_at_once=turns_at_once, **options)
    return UNSPLIT[name](fraction_train=fraction_train, min_train_nodes=1, **options)
